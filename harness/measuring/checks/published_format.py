"""Stock reads the quantised checkpoint itself, and otherwise than its format is defined.

What a release cannot read by itself is measured all the same: the cell's other checks compare with
stock that holds the values of the format's published formula.
"""

from __future__ import annotations

from harness.measuring.checkpoints import load_quantised
from harness.measuring.checks import Outcome
from harness.measuring.parity import compare
from harness.measuring.subject import Subject
from harness.records.failure import describe

UNREADABLE = (ImportError, AttributeError, RuntimeError, ValueError)
"""What releases raise that cannot read a format by themselves: a package is missing (all releases:
AWQ, GPTQ, bitsandbytes, compressed-tensors; FP8 without Triton up to 5.6), a field of the config
(5.16.1, FP8), a dtype or a conversion goes wrong (5.7 to 5.9, FP8), and keys are left over (5.7.0,
FP8). Any other error is not known yet, and the check fails with it."""


def run(subject: Subject) -> Outcome:
    """Compares stock's own `dequantize=True` with stock holding the decoded values."""
    if not subject.cell.architecture.format:
        return Outcome("not-run", message="the checkpoint is not quantised")
    try:
        model = load_quantised(subject.cell, subject.folder, subject.device)
        found = subject.uncached(model)
    except UNREADABLE as error:
        told = describe(error)
        said = f"this release cannot read it by itself ({told.exception}: {told.message})"
        return Outcome("not-run", message=said)
    figures = compare(found, subject.stock_uncached)
    if subject.equal(figures):
        return Outcome("pass", figures)
    return Outcome("stock-wrong", figures, f"off by {figures['relative']:.2g} of the largest logit")
