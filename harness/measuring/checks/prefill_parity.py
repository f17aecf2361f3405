"""The logits of a whole prompt differ from stock's.

Bit for bit on CPU, both sides in aligned memory; within the dtype's tolerance on a GPU.
"""

from __future__ import annotations

from harness.measuring.checks import Outcome, verdict
from harness.measuring.parity import compare
from harness.measuring.subject import Subject


def run(subject: Subject) -> Outcome:
    """Compares one forward without a cache."""
    stock = subject.stock_uncached  # first, lest its own failure is blamed on the streamed one
    figures = compare(subject.streamed_uncached, stock)
    good = subject.equal(figures)
    return verdict(good, figures, f"largest difference {figures['max_abs']:.3g}")
