"""Greedy generation gives other tokens than stock's."""

from __future__ import annotations

from harness.bench import PROMPT, Bench, reference_side
from harness.checks import Outcome, verdict
from harness.parity import first_divergent

LENGTH = 16
"""Tokens generated, all beyond the sliding windows of the tiny models: the prompt fills those."""


def run(bench: Bench) -> Outcome:
    """Compare token for token."""
    with reference_side():  # first, so that what both cannot do is not blamed on the streamed one
        stock = bench.generate(bench.reference, LENGTH).sequences[0].cpu()
    ours = bench.generate(bench.streamed, LENGTH).sequences[0].cpu()
    position = first_divergent(ours, stock)
    figures = {
        "tokens": len(ours) - PROMPT,
        "distinct_tokens": len(set(ours[PROMPT:].tolist())),
        "first_divergent_token": position,
    }
    message = "" if position is None else f"the first other token is number {position - PROMPT + 1}"
    return verdict(position is None and len(stock) == PROMPT + LENGTH, figures, message)
