"""Compiled by torch, the backend answers a left-padded batch differently from stock.

The other checks of its cells run it uncompiled on CPU: compiling takes longer than all of them.
"""

from __future__ import annotations

from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler

from harness.measuring.checks import Outcome, left_padded
from harness.measuring.subject import Subject, compiling


def run(subject: Subject) -> Outcome:
    """Compares greedy generation from the batch, which compiles for the prefill and for a step."""
    if subject.device.type == "cpu":
        try:
            get_cpp_compiler()
        except InvalidCxxCompiler:
            return Outcome("not-run", message="torch finds no C++ compiler")
    with compiling(allowed=True):
        return left_padded.run(subject)
