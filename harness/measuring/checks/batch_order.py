"""The order of a batch's rows changes their answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.measuring.checks import Outcome
from harness.measuring.checks.invariance import Pair, held
from harness.measuring.subject import ROWS, Subject

ORDER = (2, 0, 1)
"""Another one than that of `ROWS`, with no row in its place."""


def run(subject: Subject) -> Outcome:
    """Compares a left-padded batch with the same rows in another order."""

    def ask(model: Any) -> Iterator[Pair]:
        first, second = subject.in_a_batch(model), subject.in_a_batch(model, ORDER)
        for place, row in enumerate(ORDER):
            new = slice(-ROWS[row], None)
            yield Pair(f"row {row + 1} as row {place + 1}", second[place, new], first[row, new])

    return held(subject, ask)
