"""Generation with another cache implementation is not stock's.

Allocated in full, off the device, in 8 bits: greedy logits are stock's. Where stock refuses an
implementation, for want of a package or a GPU, the streamed model refuses it with the same words.
"""

from __future__ import annotations

from copy import deepcopy
from traceback import walk_tb
from typing import Any

import torch
from torch import Tensor

from harness.measuring.checks import Outcome, verdict
from harness.measuring.parity import compare, until_divergence
from harness.measuring.subject import STEPS, Subject, reference_side

CACHES: dict[str, dict[str, Any]] = {
    "static": {"disable_compile": True},
    "offloaded": {},
    "quantized": {"cache_config": {"backend": "fp8"}},
}
"""`cache_implementation` -> what else is asked for with it."""
REFUSALS = (AssertionError, RuntimeError, ValueError)
"""What stock refuses an implementation with: there is no GPU, as torch without CUDA says that and
as torch with it does, or the cache is none of those that are known, or not for such a model."""
REFUSING = ("transformers.cache_utils", "transformers.generation")
"""The modules of stock that do."""


def run(subject: Subject) -> Outcome:
    """Has both generate with each."""
    figures: dict[str, Any] = {}
    wrong = []
    for name in CACHES:
        with reference_side():
            stock = answer(subject, subject.reference, name)
        ours = answer(subject, subject.streamed, name)
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
        if not refuses(error):
            raise
        return f"{type(error).__name__}: {error}"
    return made.sequences[:, -STEPS:].cpu(), torch.stack(made.logits, 1).cpu()


def refuses(error: Exception) -> bool:
    """Whether stock's code for caches raised it, or what that calls of torch's, and no forward."""
    modules = [frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__)]
    return [str(name) for name in modules if name.partition(".")[0] != "torch"][-1].startswith(
        REFUSING
    )


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
