"""The logits of a whole prompt differ from stock's.

Bit for bit on CPU, both sides in aligned memory; within the dtype's tolerance on a GPU.
"""

from __future__ import annotations

from harness.bench import Bench
from harness.checks import Outcome, verdict
from harness.parity import compare, equal


def run(bench: Bench) -> Outcome:
    """Compare one forward without a cache."""
    figures = compare(bench.streamed_uncached, bench.stock_uncached)
    good = equal(figures, bench.device, bench.dtype)
    return verdict(good, figures, f"largest difference {figures['max_abs']:.3g}")
