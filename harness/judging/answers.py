"""How far stock's own answers are from the golden ones, and whether they moved."""

from __future__ import annotations

from harness.records import ASTRAY, Record

FURTHER = 1.1
"""How many times as far as before stock's logits are from the golden ones if they moved away."""


def further(before: Record | None, after: Record | None) -> bool:
    """Whether stock's answers, not the golden ones before, are further from them now."""
    was, now = astray(before), astray(after)
    if was is None or now is None:
        return False
    return now[0] > FURTHER * was[0] or now[1] > was[1]


def astray(record: Record | None) -> tuple[float, float] | None:
    """How far stock's answers are from the golden ones; None if they are not known to be.

    Returns:
        The largest difference of a logit, as a fraction of the largest, 0 if only rounding; and one
        by the number of the first other token, 0 if there is none.
    """
    found = record.checks.get("golden") if record else None
    if found is None or found.status not in ASTRAY:
        return None
    figures = found.figures
    token = figures["first_other_token"]
    return (figures["relative"] if figures["positions"] else 0.0), (1 / token if token else 0.0)
