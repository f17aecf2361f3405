"""A text far from the first position is answered otherwise than near it.

Rotary positions are relative: where all of a text's positions grow by the same number, nothing
changes but rounding, which grows with the angles.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from harness.measuring.checks import Outcome
from harness.measuring.checks.invariance import Pair, held
from harness.measuring.references.model import OriginalModel
from harness.measuring.subject import Subject

NEAR, FAR = 128, 4001
"""First positions, both past every original context.

Half precision does not hold every whole number above 2,048.
"""
ROUNDING = FAR * 2**-22
"""Of an angle of the fastest pair, in float32, and of what comes of it."""


def run(subject: Subject) -> Outcome:
    """Compares all logits."""
    if isinstance(subject.reference, OriginalModel):
        message = "the family's own frequencies may change with the last position"
        return Outcome("not-run", message=message)

    def ask(model: Any) -> Iterator[Pair]:
        near, far = (read_at(model, subject.tokens, first) for first in (NEAR, FAR))
        yield Pair(f"first position {FAR:,} instead of {NEAR}", far, near)

    return held(subject, ask, ROUNDING)


@torch.no_grad()
def read_at(model: Any, ids: Tensor, first: int) -> Tensor:
    """A model's logits [1, S, V] for ids [1, S] whose positions begin with `first`."""
    places = torch.arange(first, first + ids.shape[1], device=ids.device)[None]
    logits: Tensor = model(ids, position_ids=places, use_cache=False).logits
    return logits
