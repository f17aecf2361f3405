"""In another number format than the checkpoint's, the model answers differently from stock.

Loaded as float16, bfloat16 or float32, and as "auto", which is the checkpoint's own.
"""

from __future__ import annotations

from typing import get_args

from harness.matrix import Dtype
from harness.measuring.checks import Outcome, verdict
from harness.measuring.parity import close
from harness.measuring.subject import Subject, reference_side


def run(subject: Subject) -> Outcome:
    """Compares one forward in each."""
    if subject.cell.architecture.reference:
        return Outcome("not-run", message="the independent forward computes in float32 only")
    if subject.cell.backend.dtype:
        return Outcome("not-run", message=f"the backend knows {subject.cell.backend.dtype} only")
    wrong = []
    for dtype in get_args(Dtype):
        if dtype == subject.cell.dtype:
            continue
        with reference_side():
            due = subject.uncached(subject.stock(dtype=dtype))
        ours = subject.uncached(subject.stream(dtype=dtype))
        tolerance = subject.tolerance and max(subject.tolerance, 1e-2)
        if ours.dtype != due.dtype:
            wrong.append(f"{dtype}: logits are {ours.dtype}, stock's {due.dtype}")
        elif not close(ours, due, tolerance):
            wrong.append(f"{dtype}: other logits than stock's")
    auto = subject.stream(dtype="auto")
    if auto.dtype != subject.dtype:
        wrong.append(f"auto gives {auto.dtype}, the checkpoint is {subject.dtype}")
    elif not close(subject.uncached(auto), subject.stock_uncached, subject.tolerance):
        wrong.append("auto: other logits than stock's")
    return verdict(not wrong, {}, "; ".join(wrong))
