"""A left-padded batch of prompts of different lengths is answered differently from stock."""

from __future__ import annotations

import torch

from harness.measuring.checks import Outcome, verdict
from harness.measuring.parity import compare, until_divergence
from harness.measuring.subject import STEPS, Subject, reference_side


def run(subject: Subject) -> Outcome:
    """Compares greedy generation from the batch: tokens, logits of the prefill and of each step."""
    with reference_side():  # first, so that what both cannot do is not blamed on the streamed one
        stock = subject.generate(subject.reference, STEPS, subject.padded)
    ours = subject.generate(subject.streamed, STEPS, subject.padded)
    same = until_divergence(ours.sequences[:, -STEPS:], stock.sequences[:, -STEPS:])
    logits = (torch.stack(side.logits, 1).cpu()[same] for side in (ours, stock))
    figures = compare(*logits)
    tokens = torch.equal(ours.sequences, stock.sequences)
    # Logits within tolerance leave a choice between tokens that are nearly as good.
    good = subject.equal(figures) and (tokens or subject.tolerance > 0)
    return verdict(
        good, figures, f"largest difference {figures['max_abs']:.3g}, same tokens: {tokens}"
    )
