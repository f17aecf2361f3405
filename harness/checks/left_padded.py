"""A left-padded batch of prompts of different lengths is answered differently from stock."""

from __future__ import annotations

import torch

from harness.bench import STEPS, Bench, reference_side
from harness.checks import Outcome, verdict
from harness.parity import compare, equal


def run(bench: Bench) -> Outcome:
    """Compare greedy generation from the batch: tokens, and logits of the prefill and each step."""
    ours = bench.generate(bench.streamed, STEPS, bench.padded)
    with reference_side():
        stock = bench.generate(bench.reference, STEPS, bench.padded)
    figures = compare(torch.stack(ours.logits, 1), torch.stack(stock.logits, 1))
    tokens = torch.equal(ours.sequences, stock.sequences)
    good = equal(figures, bench.device, bench.dtype) and tokens
    return verdict(
        good, figures, f"largest difference {figures['max_abs']:.3g}, same tokens: {tokens}"
    )
