"""Greedy generation gives other tokens than stock's."""

from __future__ import annotations

import torch

from harness.bench import PROMPT, Bench, reference_side
from harness.checks import Outcome, verdict
from harness.parity import compare, first_divergent, until_divergence

LENGTH = 16
"""Tokens generated, all beyond the sliding windows of the tiny models: the prompt fills those."""


def run(bench: Bench) -> Outcome:
    """Compare token for token; what tolerated logits choose between may be chosen differently."""
    with reference_side():  # first, so that what both cannot do is not blamed on the streamed one
        stock = bench.generate(bench.reference, LENGTH)
    ours = bench.generate(bench.streamed, LENGTH)
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
    tie = bench.tolerance > 0 and bench.equal(figures)
    return verdict(position is None or tie, figures, message)
