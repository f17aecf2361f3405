"""The logits of the last positions alone are not those that they have among all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from harness.measuring.checks import Outcome
from harness.measuring.checks.invariance import Pair, held
from harness.measuring.subject import Subject

LAST = (1, 3)
"""Positions that are asked for."""


def run(subject: Subject) -> Outcome:
    """Compares `logits_to_keep` with the end of all logits."""

    @torch.no_grad()
    def ask(model: Any) -> Iterator[Pair]:
        every = subject.alone(model)
        for count in LAST:
            found = model(subject.tokens, use_cache=False, logits_to_keep=count).logits
            yield Pair(f"logits_to_keep={count}", found, every[:, -count:])

    return held(subject, ask)
