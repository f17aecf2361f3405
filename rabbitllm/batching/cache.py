"""The cache of a batch whose rows come and go: stock's DynamicCache, its columns kept in order.

A row's tokens lie side by side at the right end, behind padding, as in a left-padded batch of
stock's `generate`: windows and masks count columns. In a pass in which rows bring different numbers
of tokens, each row's come first and padding behind them; afterwards the row moves to the right.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rabbitllm.streaming.offloaded import keep_in_order
from rabbitllm.streaming.working import Geometry, Work

SLACK = 256
"""Tokens that layers with a window keep beyond it, and the most of a pass with padding behind: what
is padding in the newest columns has pushed as many out of the oldest."""
LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)
"""The layers whose columns are tokens and whose rows have nothing else."""


class RowsCache:
    """The keys and values of the rows of a batch.

    Args:
        config: of the model.
        device: the GPU that the model computes on, if the cache is to lie in the host's memory: a
            layer's part of it is there while that layer computes.
        make_room: called with the bytes that are about to be taken for a while.

    Attributes:
        cache: what the model's forward is given.
        columns: tokens of each row in it, padding included.
    """

    def __init__(
        self,
        config: PretrainedConfig,
        device: torch.device | None = None,
        make_room: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._make_room = make_room
        self.cache = OffloadedCache(config, device) if device else make_cache(config)
        for layer in self.cache.layers:
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.sliding_window += SLACK
        self.columns = 0

    def lay_out(
        self,
        rows: Sequence[int],
        columns: int,
        own: "RowsCache | None" = None,
        at: Sequence[int | None] = (),
    ) -> None:
        """Keeps these rows, in this order, and puts those of another cache among them.

        Args:
            rows: what lies there so far; one that comes twice makes a place to be overwritten.
            columns: newest of each row, which all their tokens lie in; padding in front if there
                are fewer.
            own: the other cache, which is emptied.
            at: where each of its rows goes; None if it is left out.
        """
        others = own._layers() if own else repeat(None)
        taken = [i for i, place in enumerate(at) if place is not None]
        places = [place for place in at if place is not None]
        freed = 0  # by the layer before, for what is no larger
        for layer, other in zip(self._layers(), others, strict=False):
            held, before = layer.keys.shape[-2], len(layer.keys)
            slides = isinstance(layer, DynamicSlidingWindowLayer)
            kept = min(columns, layer.sliding_window - 1) if slides else columns
            if slides:
                layer.cumulative_length = columns
            moved, ahead = list(rows) != list(range(before)), max(0, kept - held)
            if moved or ahead:
                nbytes = layer.keys.nbytes + layer.values.nbytes
                if (needed := nbytes // (before * held) * len(rows) * kept) > freed:
                    self._make_room(needed)
                freed = nbytes
            layer.keys, layer.values = (
                states[..., max(0, held - kept) :, :] for states in (layer.keys, layer.values)
            )
            if moved:
                layer.batch_select_indices(torch.tensor(rows))
            if ahead:
                layer.keys, layer.values = (
                    pad(states, (0, 0, ahead, 0)) for states in (layer.keys, layer.values)
                )
            if other is not None:
                new = min(kept, other.keys.shape[-2])
                layer.keys[places, :, kept - new :] = other.keys[taken, :, -new:]
                layer.values[places, :, kept - new :] = other.values[taken, :, -new:]
                other.keys = other.values = other.keys.new_empty(0)
        self.columns = columns

    def settle(self, shifts: Sequence[int], drop: int) -> None:
        """Moves rows to the right, and drops columns that are padding in all of them.

        Args:
            shifts: of each row, its newest columns that are padding.
            drop: how many of the oldest columns go.
        """
        if not drop and not any(shifts):
            return
        by = torch.tensor(shifts)[:, None] if any(shifts) else None
        freed = 0
        for layer in self._layers():
            held = layer.keys.shape[-2]
            left = min(held, self.columns - drop)
            if by is None:  # what goes is in front: the rest is a view, until more is put behind
                layer.keys, layer.values = (
                    states[..., held - left :, :] for states in (layer.keys, layer.values)
                )
            else:
                nbytes = layer.keys.nbytes + layer.values.nbytes
                if nbytes > freed:
                    self._make_room(nbytes)
                freed = nbytes
                columns = ((torch.arange(held - left, held) - by) % held).to(layer.keys.device)
                layer.keys = _columns(layer.keys, columns)
                layer.values = _columns(layer.values, columns)
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.cumulative_length -= drop
        self.columns -= drop

    def _layers(self) -> Iterator[Any]:
        """The layers that hold something, each on its device as long as it is looked at.

        Others use another layer's keys and values.
        """
        layers: Sequence[Any] = self.cache.layers
        held = [index for index, layer in enumerate(layers) if layer.is_initialized]
        if isinstance(self.cache, OffloadedCache):
            yield from self.cache.visit(held)
        else:
            yield from (layers[index] for index in held)


class OffloadedCache(DynamicCache):
    """Stock's cache in the host's memory.

    Args:
        config: of the model.
        device: the GPU that it computes on.
    """

    def __init__(self, config: PretrainedConfig, device: torch.device) -> None:
        with torch.cuda.device(device):  # whose stream stock makes
            super().__init__(config=config, offloading=True)
        keep_in_order([self])
        self._device = device

    def visit(self, indices: Sequence[int]) -> Iterator[Any]:
        """These layers, each on the device as long as it is looked at; the first comes ahead again.

        Stock has the last layer of a pass bring the first one, and counts on it in the next pass.
        """
        own = torch.cuda.current_stream(self._device)
        own.wait_stream(self.prefetch_stream)
        for index in indices:
            layer = self.layers[index]
            layer.prefetch()
            yield layer
            self.offload(index, self.only_non_sliding)
        self.prefetch(0, self.only_non_sliding)


def slack_bytes(geometry: Geometry, dtype: torch.dtype, work: Work) -> int:
    """Bytes that a `RowsCache` holds behind that work beyond what stock's cache would.

    Args:
        geometry: of the model.
        dtype: of its cache.
        work: of the forward.
    """
    tokens = work.past + work.new
    windows = [window for window in geometry.windows if window]
    beyond = sum(min(window + SLACK, tokens) - min(window, tokens) for window in windows)
    return work.sequences * beyond * geometry.kept * dtype.itemsize


def make_cache(config: PretrainedConfig) -> DynamicCache:
    """Stock's cache for a model with that config."""
    return DynamicCache(config=config)


def can_hold_rows(config: PretrainedConfig) -> bool:
    """Whether all that a model caches are tokens: no states, which padding would enter."""
    return all(type(layer) in LAYERS for layer in make_cache(config).layers)


def _columns(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Of states [rows, heads, tokens, width] the columns [rows, kept] of each row."""
    return torch.take_along_dim(states, columns[:, None, :, None], dim=-2)
