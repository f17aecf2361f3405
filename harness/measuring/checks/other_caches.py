"""Generation with another cache implementation is not stock's.

Allocated in full, off the device, in 8 bits: greedy logits are stock's. Where stock refuses an
implementation, for want of a package or a GPU, the streamed model refuses it with the same words.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from harness.measuring.checks import Outcome, verdict
from harness.measuring.parity import compare, until_divergence
from harness.measuring.subject import STEPS, Subject

CACHES: dict[str, dict[str, Any]] = {
    "static": {"disable_compile": True},
    "offloaded": {},
    "quantized": {"cache_config": {"backend": "fp8"}},
}
"""`cache_implementation` -> what else is asked for with it."""
REFUSALS = (AssertionError, ImportError, RuntimeError, TypeError, ValueError)
"""What stock refuses an implementation with."""


def run(subject: Subject) -> Outcome:
    """Has both generate with each."""
    figures: dict[str, Any] = {}
    wrong = []
    for name in CACHES:
        stock, ours = (
            answer(subject, model, name) for model in (subject.reference, subject.streamed)
        )
        figures[name] = stock if isinstance(stock, str) else "answers"
        if difference := other(subject, ours, stock):
            wrong.append(f"{name}: {difference}")
    if not wrong and "answers" not in figures.values():
        return Outcome("not-run", figures, "stock refuses all of them")
    return verdict(not wrong, figures, "; ".join(wrong))


def answer(subject: Subject, model: Any, name: str) -> tuple[Tensor, Tensor] | str:
    """New tokens [1, STEPS] and their logits [1, STEPS, vocabulary], or how it is refused."""
    options = deepcopy(CACHES[name])  # some releases take "backend" out of what they are given
    try:
        made = subject.generate(model, STEPS, cache_implementation=name, **options)
    except REFUSALS as error:
        return f"{type(error).__name__}: {error}"
    return made.sequences[:, -STEPS:].cpu(), torch.stack(made.logits, 1).cpu()


def other(
    subject: Subject, ours: tuple[Tensor, Tensor] | str, stock: tuple[Tensor, Tensor] | str
) -> str:
    """How an answer differs from stock's, in words; empty if it does not."""
    if isinstance(ours, str) or isinstance(stock, str):
        if ours == stock:
            return ""
        said, due = (each if isinstance(each, str) else "it answers" for each in (ours, stock))
        return f"{said} (stock: {due})"
    same = until_divergence(ours[0], stock[0])
    figures = compare(ours[1][same], stock[1][same])
    return "" if subject.equal(figures) else f"logits are off by {figures['max_abs']:.3g}"
