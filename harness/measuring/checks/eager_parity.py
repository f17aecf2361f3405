"""The attention backend's answer is not eager's, beyond rounding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from harness.measuring.checks import Outcome
from harness.measuring.checks.invariance import Pair, held
from harness.measuring.references.model import OriginalModel
from harness.measuring.subject import ROWS, Subject, reference_side

EAGER = "eager"


def run(subject: Subject) -> Outcome:
    """Compares logits of a text and of a padded batch with those of stock run eagerly."""
    stock, backend = subject.reference, subject.cell.backend.id
    if backend == EAGER or isinstance(stock, OriginalModel):
        return Outcome("not-run", message="there is no other eager answer")
    with reference_side():
        due = answers_run_by(EAGER, subject, stock)

    def ask(model: Any) -> Iterator[Pair]:
        yield Pair("the text", subject.alone(model), due[0])
        batch = subject.in_a_batch(model)
        for row, length in enumerate(ROWS):
            yield Pair(f"padded row {row + 1}", batch[row, -length:], due[1][row, -length:])

    return held(subject, ask)


def answers_run_by(backend: str, subject: Subject, stock: Any) -> tuple[Tensor, Tensor]:
    """Stock's logits of the text and of the batch, run by another backend for once."""
    own = stock.config._attn_implementation
    stock.set_attn_implementation(backend)
    try:
        with torch.no_grad():
            return subject.uncached(stock), subject.batched(stock)
    finally:
        stock.set_attn_implementation(own)
