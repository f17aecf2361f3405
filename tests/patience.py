"""How long tests wait for what must come."""

from __future__ import annotations

PATIENCE = 600
"""Seconds after which it never will: a test that waits longer is broken, a busy machine is not."""
