"""Greedy generation gives other tokens than stock's."""

from __future__ import annotations

import torch

from harness.measuring.checks import Outcome, verdict
from harness.measuring.parity import compare, first_divergent, until_divergence
from harness.measuring.subject import PROMPT, Subject, reference_side

LENGTH = 8
"""Tokens generated, all beyond the sliding windows of the tiny models: the prompt fills those."""


def run(subject: Subject) -> Outcome:
    """Compares token for token; what tolerated logits choose between may be chosen differently."""
    with reference_side():  # first, so that what both cannot do is not blamed on the streamed one
        stock = subject.generate(subject.reference, LENGTH)
    ours = subject.generate(subject.streamed, LENGTH)
    new = [side.sequences[:, -LENGTH:].cpu() for side in (ours, stock)]
    same = until_divergence(*new)
    figures = compare(*(torch.stack(side.logits, 1).cpu()[same] for side in (ours, stock)))
    position = first_divergent(new[0][0], new[1][0])
    figures |= {
        "tokens": LENGTH,
        "distinct_tokens": len(set(new[0][0].tolist())),
        "first_divergent_token": None if position is None else PROMPT + position,
    }
    message = "" if position is None else f"the first other token is number {position + 1}"
    tie = subject.tolerance > 0 and subject.equal(figures)
    return verdict(position is None or tie, figures, message)
