"""Invariances: two ways to one answer, asked of stock and of the streamed model.

Where stock's own two answers differ, the release contradicts itself; where only the streamed
model's do, the engine is to blame. An independent forward in stock's place is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from harness.measuring.checks import Outcome
from harness.measuring.parity import TOLERANCE
from harness.measuring.references.model import OriginalModel
from harness.measuring.subject import Subject, reference_side


@dataclass(frozen=True)
class Pair:
    """Two answers that should be the same.

    Attributes:
        where: what they are answers to, in words.
        found: the answer, of any shape.
        due: what it should be; another shape is another answer.
    """

    where: str
    found: Tensor
    due: Tensor

    @property
    def relative(self) -> float:
        """The largest difference, as a fraction of the largest value due; NaN counts as endless."""
        if self.found.shape != self.due.shape:
            return float("inf")
        ours, due = self.found.detach().double(), self.due.detach().double()
        far = ((ours - due).abs().max() / due.abs().max().clamp(min=1e-30)).item()
        return far if far == far else float("inf")

    def __str__(self) -> str:
        """In words, how far they are apart."""
        if self.found.shape != self.due.shape:
            return f"{self.where}: shape {list(self.found.shape)}, not {list(self.due.shape)}"
        return f"{self.where}: off by {self.relative:.2g} of the largest value"


Ask = Callable[[Any], Iterable[Pair]]
"""Asks a model both ways."""


def held(subject: Subject, ask: Ask, rounding: float = 0.0) -> Outcome:
    """Whether stock and the streamed model each answer both ways alike.

    Args:
        subject: whose two models are asked.
        ask: asks either of them.
        rounding: the largest difference that is none, as a fraction of the largest value; at least
            what another order of summation makes in the dtype.
    """
    figures: dict[str, Any] = {}
    rounding = max(rounding, TOLERANCE[subject.dtype])
    for side, pair in _furthest(subject, ask):
        figures[f"{side}_relative"] = pair.relative
        if pair.relative > rounding:
            if side == "stock":
                return Outcome("reference-broken", figures, f"stock itself, {pair}")
            return Outcome("fail", figures, str(pair))
    return Outcome("pass", figures)


def _furthest(subject: Subject, ask: Ask) -> Iterator[tuple[str, Pair]]:
    """Yields each side, stock first, with its worst pair."""
    if not isinstance(subject.reference, OriginalModel):
        with reference_side():
            pairs = list(ask(subject.reference))
        yield "stock", max(pairs, key=lambda pair: pair.relative)
    yield "streamed", max(ask(subject.streamed), key=lambda pair: pair.relative)
