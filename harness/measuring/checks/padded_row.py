"""A row of a padded batch is not answered as the row alone.

One forward of left-padded rows, each of them the beginning of one text: its logits are those that
the text has without padding. The streamed model's are stock's, at the padding, too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from harness.measuring.checks import Outcome
from harness.measuring.checks.invariance import Pair, held
from harness.measuring.parity import compare
from harness.measuring.references.model import OriginalModel
from harness.measuring.subject import ROWS, Subject


def run(subject: Subject) -> Outcome:
    """Compares each row, without its padding."""

    def ask(model: Any) -> Iterator[Pair]:
        batch, alone = subject.in_a_batch(model), subject.alone(model)
        for row, length in enumerate(ROWS):
            yield Pair(f"row of {length} tokens", batch[row, -length:], alone[0, :length])

    found = held(subject, ask)
    if found.status != "pass" or isinstance(subject.reference, OriginalModel):
        return found
    sides = (subject.streamed, subject.reference)
    ours, due = (subject.in_a_batch(side).nan_to_num() for side in sides)
    if not subject.equal(compare(ours, due)):
        return Outcome("fail", found.figures, "logits at the padding are not stock's")
    return found
