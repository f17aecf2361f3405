"""The logits of a whole prompt differ from stock's.

Bit for bit on CPU, both sides in aligned memory; within the dtype's tolerance on a GPU.
"""

from __future__ import annotations

from harness.bench import Bench
from harness.checks import Outcome, verdict
from harness.parity import compare


def run(bench: Bench) -> Outcome:
    """Compare one forward without a cache."""
    stock = bench.stock_uncached  # first, so that its own failure is not blamed on the streamed one
    figures = compare(bench.streamed_uncached, stock)
    good = bench.equal(figures)
    return verdict(good, figures, f"largest difference {figures['max_abs']:.3g}")
