"""A left-padded batch of prompts of different lengths is answered differently from stock."""

from __future__ import annotations

import torch

from harness.bench import STEPS, Bench, reference_side
from harness.checks import Outcome, verdict
from harness.parity import compare, until_divergence


def run(bench: Bench) -> Outcome:
    """Compare greedy generation from the batch: tokens, and logits of the prefill and each step."""
    with reference_side():  # first, so that what both cannot do is not blamed on the streamed one
        stock = bench.generate(bench.reference, STEPS, bench.padded)
    ours = bench.generate(bench.streamed, STEPS, bench.padded)
    same = until_divergence(ours.sequences[:, -STEPS:], stock.sequences[:, -STEPS:])
    logits = (torch.stack(side.logits, 1).cpu()[same] for side in (ours, stock))
    figures = compare(*logits)
    tokens = torch.equal(ours.sequences, stock.sequences)
    # Logits within tolerance leave a choice between tokens that are nearly as good.
    good = bench.equal(figures) and (tokens or bench.tolerance > 0)
    return verdict(
        good, figures, f"largest difference {figures['max_abs']:.3g}, same tokens: {tokens}"
    )
