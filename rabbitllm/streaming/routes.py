"""From tokens to some of a mixture's experts.

A token that is sent to k experts is k tokens that are sent to one each. So stock's own forward runs
for the routes to some experts as well as for all: with states [routes, hidden], and numbers and
weights [routes, 1].
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from rabbitllm.streaming.picking import HOST

PIECES = 3
"""Some tokens at a time: a piece has states and outputs for each of its routes. So the device's
part takes 0.84 of what budgets keep room for at most, were all routes its, and 0.52 to 0.63 of what
stock's "grouped_mm" takes for all tokens at once (peaks on CPU in bfloat16, five geometries)."""


class Given(NamedTuple):
    """What experts are given.

    Attributes:
        states: [tokens, hidden].
        numbers: of the experts that a token is sent to: [tokens, k].
        weights: by which what they make of it is multiplied: [tokens, k].
    """

    states: torch.Tensor
    numbers: torch.Tensor
    weights: torch.Tensor


def as_given(values: Sequence[object]) -> Given | None:
    """The same; None where they are something else."""
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if not len(tensors) == len(values) == len(Given._fields):
        return None
    given = Given(*tensors)
    two_wide = given.states.dim() == given.numbers.dim() == 2
    same = len(given.states) == len(given.numbers) and given.weights.shape == given.numbers.shape
    return given if two_wide and same else None


class Routes(NamedTuple):
    """From tokens to some of the experts.

    Attributes:
        flat: where they are among those to all, [tokens x k], ascending: [routes].
        numbers: of their experts: [routes].
    """

    flat: torch.Tensor
    numbers: torch.Tensor

    @classmethod
    def of(cls, numbers: torch.Tensor) -> "Routes":
        """Of numbers for all routes, [tokens x k], those that are not below 0."""
        flat = torch.nonzero(numbers >= 0).flatten()
        return cls(flat, numbers[flat])

    def cut(self, begin: int, end: int) -> "Routes":
        """Some of them, in their order."""
        return Routes(self.flat[begin:end], self.numbers[begin:end])

    def compute(self, forward: Callable[..., torch.Tensor], given: Given) -> torch.Tensor:
        """What their experts make of them: [routes, hidden], in the dtype of the states.

        Args:
            forward: computes it.
            given: what all tokens are given.
        """
        if not len(self.flat):
            return given.states.new_empty((0, given.states.shape[1]))
        states = given.states.index_select(0, self.flat // given.numbers.shape[1])
        weights = given.weights.flatten()[self.flat, None]
        numbers = self.numbers[:, None].to(given.numbers.dtype)
        return forward(states, numbers, weights).to(given.states.dtype)

    def pieces(self, numbers: torch.Tensor) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """A first and a last token, and the routes that are theirs, `PIECES` times.

        Args:
            numbers: of the experts that a token is sent to: [tokens, k].
        """
        tokens, k = numbers.shape
        bounds = [tokens * piece // PIECES for piece in range(PIECES + 1)]
        cuts = torch.searchsorted(self.flat, torch.tensor(bounds, device=HOST) * k).tolist()
        return list(zip(pairwise(bounds), pairwise(cuts), strict=True))

    def deal(self, count: int) -> list[torch.Tensor]:
        """Shares the experts out; returns for each share which of the routes are to its own.

        Those with the most routes come first, in turns there and back.

        Args:
            count: of shares.
        """
        _, expert, asked = self.numbers.unique(return_inverse=True, return_counts=True)
        rank = torch.argsort(torch.argsort(asked, descending=True, stable=True))
        turn, place = rank // count, rank % count
        share = torch.where(turn % 2 == 0, place, count - 1 - place)[expert]
        return [torch.nonzero(share == number).flatten() for number in range(count)]
