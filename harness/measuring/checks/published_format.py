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


def run(subject: Subject) -> Outcome:
    """Compares stock's own `dequantize=True` with stock holding the decoded values."""
    if not subject.cell.architecture.format:
        return Outcome("not-run", message="the checkpoint is not quantised")
    try:
        model = load_quantised(subject.cell, subject.folder, subject.device)
        found = subject.uncached(model)
    except Exception as error:  # a package that is not there, a form that it does not know: a fact
        told = describe(error)
        said = f"this release cannot read it by itself ({told.exception}: {told.message})"
        return Outcome("not-run", message=said)
    figures = compare(found, subject.stock_uncached)
    if subject.equal(figures):
        return Outcome("pass", figures)
    return Outcome("stock-wrong", figures, f"off by {figures['relative']:.2g} of the largest logit")
