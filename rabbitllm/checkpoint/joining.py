"""Weights that a checkpoint holds in pieces, one behind the other: read where they lie.

In memory a mixture's experts are one weight; in files each is apart, its projections, too. Which
pieces follow one another in a weight is asked of transformers' own operations: they are run on
small tensors whose elements are numbered.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod

import torch
from transformers import PreTrainedModel

from rabbitllm.checkpoint.convert import Recipe
from rabbitllm.checkpoint.tensors import Joined, TensorEntry

SMALL = (2, 3, 5, 7, 11, 13, 17, 19)
"""What stands for the sizes of tensors: primes, so that what cuts or folds them by a number of the
config fails, instead of seeming to do nothing."""
Order = dict[str, tuple[int, ...]]
"""Weight -> the positions of its pieces among the sources of its recipe."""


class Joiner:
    """Finds the pieces of weights.

    Args:
        model: whose weights they are, on the meta device.
        entries: a checkpoint's tensors, by their keys.
    """

    def __init__(self, model: PreTrainedModel, entries: Mapping[str, TensorEntry]) -> None:
        self._model = model
        self._entries = entries
        self._shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self._orders: dict[object, Sequence[tuple[int, ...]] | None] = {}

    def join(self, recipe: Recipe) -> dict[str, Joined]:
        """The weights that a recipe makes, if their elements are those of its sources as they lie.

        Returns:
            Weight -> where its pieces lie; empty if some are computed.
        """
        sources = [self._entries[key] for key, _ in recipe.sources]
        order = self._order(recipe, [entry.shape for entry in sources])
        made = {}
        for name, positions in zip(recipe.targets, order or (), strict=False):
            parts = tuple(sources[position] for position in positions)
            shape = self._shapes[name]
            if len({part.dtype for part in parts}) != 1:
                return {}
            if sum(prod(part.shape) for part in parts) != prod(shape):
                return {}
            made[name] = Joined(parts, parts[0].dtype, shape)
        return made

    def _order(
        self, recipe: Recipe, shapes: Sequence[tuple[int, ...]]
    ) -> Sequence[tuple[int, ...]] | None:
        """The positions of each target's pieces; the layers of a model share the answer."""
        assert recipe.converter is not None
        converter, patterns = recipe.converter, tuple(pattern for _, pattern in recipe.sources)
        sides = tuple(converter.source_patterns), tuple(converter.target_patterns)
        key = sides, patterns, tuple(shapes)
        if key not in self._orders:
            self._orders[key] = _find_order(recipe, shapes, self._model)
        return self._orders[key]


def _find_order(
    recipe: Recipe, shapes: Sequence[tuple[int, ...]], model: PreTrainedModel
) -> Sequence[tuple[int, ...]] | None:
    sizes = sorted({size for shape in shapes for size in shape})
    if len(sizes) > len(SMALL):
        return None
    smaller = dict(zip(sizes, SMALL, strict=False))
    forms = [tuple(smaller[size] for size in shape) for shape in shapes]
    ends = list(accumulate(prod(form) for form in forms))
    begins = [0, *ends[:-1]]
    numbered = {
        key: torch.arange(begin, end, device="cpu").reshape(form)
        for (key, _), form, begin, end in zip(recipe.sources, forms, begins, ends, strict=True)
    }
    whole = dict.fromkeys(recipe.targets, torch.int64)
    try:
        made = recipe.run(model, numbered.__getitem__, whole)
    except (AssertionError, RuntimeError, ValueError, LookupError, TypeError, AttributeError):
        return None  # what needs the real sizes
    if made.keys() < set(recipe.targets):
        return None
    at = {begin: position for position, begin in enumerate(begins)}
    orders = [_pieces(made[name].reshape(-1), at, ends) for name in recipe.targets]
    used = [position for order in orders for position in order or ()]
    if None in orders or sorted(used) != list(range(len(shapes))):
        return None
    return [order for order in orders if order is not None]


def _pieces(
    numbers: torch.Tensor, at: Mapping[int, int], ends: Sequence[int]
) -> tuple[int, ...] | None:
    """The positions of the sources whose numbers follow one another; None if they are mixed."""
    found, place = [], 0
    while place < len(numbers):
        begin = int(numbers[place])
        if begin not in at:
            return None
        position = at[begin]
        count = ends[position] - begin
        piece = numbers[place : place + count]
        if not torch.equal(piece, torch.arange(begin, begin + len(piece), device="cpu")):
            return None
        if len(piece) != count:
            return None
        found.append(position)
        place += count
    return tuple(found)
