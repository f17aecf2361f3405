"""Invariances: two ways to one answer, asked of stock and of the streamed model.

Where stock's own two answers differ, the release contradicts itself; where only the streamed
model's do, the engine is to blame. An independent forward in stock's place is not asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
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
        found: the answer [..., values]; what comes before the values are positions.
        due: what it should be; another shape is another answer.
    """

    where: str
    found: Tensor
    due: Tensor

    def relative(self) -> float:
        """The largest difference, as a fraction of the largest value due; NaN counts as endless."""
        return self._far(lambda by_position: by_position.max())

    def typical(self) -> float:
        """The same at the middle one of the positions: where values are rounded, a few may be far.

        A router then takes another expert there, and a sharp attention looks elsewhere.
        """
        return self._far(lambda by_position: by_position.median())

    def _far(self, of: Callable[[Tensor], Tensor]) -> float:
        if self.found.shape != self.due.shape:
            return float("inf")
        ours, due = (torch.atleast_1d(each.detach().double()) for each in (self.found, self.due))
        by_position = (ours - due).abs().amax(-1)
        far = (of(by_position) / due.abs().max().clamp(min=1e-30)).item()
        return far if far == far else float("inf")

    def __str__(self) -> str:
        """In words, how far they are apart."""
        if self.found.shape != self.due.shape:
            return f"{self.where}: shape {list(self.found.shape)}, not {list(self.due.shape)}"
        return f"{self.where}: off by {self.relative():.2g} of the largest value"


Ask = Callable[[Any], Iterable[Pair]]
"""Asks a model both ways."""


def held(subject: Subject, ask: Ask, rounding: float = 0.0) -> Outcome:
    """Whether stock and the streamed model each answer both ways alike.

    Args:
        subject: whose two models are asked.
        ask: asks either of them.
        rounding: the largest difference that is none, as a fraction of the largest value; at least
            what another order of summation makes in the dtype. In half precision the middle one
            of the positions is held to it, else all are.
    """
    figures: dict[str, Any] = {}
    rounding = max(rounding, TOLERANCE[subject.dtype])
    measure = Pair.relative if subject.dtype == torch.float32 else Pair.typical
    for side, pair in _furthest(subject, ask, measure):
        figures[f"{side}_relative"] = measure(pair)
        if measure(pair) > rounding:
            if side == "stock":
                return Outcome("reference-broken", figures, f"stock itself, {pair}")
            return Outcome("fail", figures, str(pair))
    return Outcome("pass", figures)


def _furthest(
    subject: Subject, ask: Ask, measure: Callable[[Pair], float]
) -> Iterator[tuple[str, Pair]]:
    """Yields each side, stock first, with its worst pair."""
    if not isinstance(subject.reference, OriginalModel):
        with reference_side():
            pairs = list(ask(subject.reference))
        yield "stock", max(pairs, key=measure)
    yield "streamed", max(ask(subject.streamed), key=measure)
