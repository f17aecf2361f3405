"""Timed claims: each a ratio, both sides measured in the same run."""
