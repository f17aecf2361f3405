"""A row of a padded batch is not answered as the row alone.

One forward of left-padded rows, each of them the beginning of one text: its logits are those that
the text has without padding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.measuring.checks import Outcome
from harness.measuring.checks.invariance import Pair, held
from harness.measuring.subject import ROWS, Subject


def run(subject: Subject) -> Outcome:
    """Compares each row, without its padding."""

    def ask(model: Any) -> Iterator[Pair]:
        batch, alone = subject.in_a_batch(model), subject.alone(model)
        for row, length in enumerate(ROWS):
            yield Pair(f"row of {length} tokens", batch[row, -length:], alone[0, :length])

    return held(subject, ask)
