"""How a release has a cache given to a forward, and how it gives one back."""

from __future__ import annotations

import inspect
from typing import Any

NAMES = ("cache", "past_key_values")
"""What it is called from 5.24 on, and before. Forwards take the older name, too, up to 5.40."""


def given(model: Any, cache: Any) -> dict[str, Any]:
    """The argument by which a model's forward is given a cache."""
    names = inspect.signature(model.forward).parameters
    return {next((name for name in NAMES if name in names), NAMES[0]): cache}


def taken(output: Any) -> Any:
    """The cache that comes with what a forward returns; None if none does."""
    found = (getattr(output, name, None) for name in NAMES)
    return next((cache for cache in found if cache is not None), None)
