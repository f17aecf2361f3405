"""What torch holds on a CUDA device, unused memory included, kept below a budget.

torch's allocator keeps what is freed, for requests of the same size. A cache that grows asks for
another size at every growth, layer by layer, so that a whole cache of freed memory collects: of a
prompt of 16,000 tokens in 14 chunks 0.74 GiB (7B shape, H100), which no other process can use and
no estimate of what is in use holds. Before a block adds to it, such memory goes back.

To give it back takes a wait for the device, and all that comes to it stops meanwhile: before each
block of a batch of 111 rows that was a quarter of a pass. A block of the same form as the one
before asks for the same sizes again, which that has just freed, so that memory stays: unless the
cache's tensors come to sizes that what they leave is too small for. And what the first of them has
taken is known then, which is less than the estimate.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from rabbitllm.streaming.routed import counts_of
from rabbitllm.streaming.working import Geometry, Work, passing_bytes

SEGMENT = 2 << 20
"""Bytes that torch's allocator takes at least, and gives back at least
(https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management)."""
SHARED = 20 << 20
"""Bytes that it takes at least for tensors of which half that is enough: they share it. Larger ones
have memory of their own, a multiple of `SEGMENT` (c10/cuda/CUDACachingAllocator.cpp)."""


@dataclass
class Ceiling:
    """The most that torch may hold for a model.

    Attributes:
        device: a CUDA device.
        nbytes: of its memory, in use or not.
        weights: bytes of weights on it.
        geometry: of the model.
        dtype: of its cache.
        before: called before memory goes back, which waits for the device; what that waits for must
            not need the interpreter then, which others may hold who wait for torch's allocator.
    """

    device: torch.device
    nbytes: int
    weights: int
    geometry: Geometry
    dtype: torch.dtype
    before: Callable[[], None] = lambda: None
    _coming: int = field(default=0, init=False)  # that a part of a block takes
    _block: int = field(default=0, init=False)  # that a block takes
    _again: int | None = field(default=None, init=False)  # see `taken_again`
    _kinds: bool = field(default=False, init=False)  # what one has taken tells what the next takes
    _ran: set[Hashable] = field(default_factory=set, init=False)  # kinds, since memory went back
    _took: dict[Hashable, int] = field(default_factory=dict, init=False)  # kind -> bytes at most
    _running: Hashable = field(default=None, init=False)  # the kind of the last block
    _start: int = field(default=0, init=False)  # bytes that were in use as it began
    _roomy: bool = field(default=False, init=False)  # there is enough for it
    _limit: int | None = field(default=None, init=False)
    _stuck: int = field(default=0, init=False)  # not in use, and could not be given back last time

    def watch(self, blocks: Sequence[nn.Module], parts: Iterable[nn.Module]) -> None:
        """Keeps to it in every forward.

        Args:
            blocks: the model's, as far as they compute on the device.
            parts: of them, whole blocks, and what is outside of them.
        """
        windows, inside = self.geometry.windows, set[nn.Module]()
        for number, block in enumerate(blocks):
            shapes = tuple(each.shape for each in block.parameters())
            # Of a mixture's layers each has other numbers of tokens for its experts.
            even = not any(counts_of(each) for each in block.modules())
            known = even and len(windows) == len(blocks)
            kind = (windows[number], shapes) if known else (number,)
            block.register_forward_pre_hook(partial(self._begin_block, kind))
            inside.update(block.modules())
        for part in parts:
            keep = self._keep_inside if part in inside else self.keep
            part.register_forward_pre_hook(partial(_called, keep))

    def begin(self, work: Work, others: int = 0) -> None:
        """Finds out whether a forward with this work may come near the budget.

        What is not in use goes back first where it is in the way. As a rule that is enough for many
        forwards: to ask the allocator before each block takes the host time, too.

        Args:
            work: of the forward.
            others: bytes of caches beside its own that the budget counts, too.
        """
        self._limit = None
        about = self.geometry, self.dtype, self.device, work
        self._coming, self._block = passing_bytes(*about), passing_bytes(*about, sum)
        # Where gradients are asked for, a block frees next to nothing.
        self._kinds = not torch.is_grad_enabled()
        self._again = taken_again(self.geometry, self.dtype, work)
        self._ran.clear()
        self._took.clear()
        self._running, self._roomy = None, False
        behind = self.geometry.cached(work) * self.dtype.itemsize
        held, allocated = self._held()
        if held + self._coming + behind <= self.nbytes:
            return
        cached = self.geometry.cached(replace(work, new=0)) * self.dtype.itemsize + others
        limit = self._limit = self.nbytes + max(0, allocated - self.weights - cached)
        self.keep()
        if self._held()[0] + self._coming + behind <= limit:
            self._limit = None

    def keep(self) -> None:
        """Gives back what is not in use, if what a part takes could make it too much.

        What that costs, a wait for the device, is paid only by work that comes near the budget, and
        only for memory that was not there last time: what lies between tensors stays.
        """
        if self._limit is not None:
            self._give_back(self._coming, self._limit)

    def _begin_block(self, kind: Hashable, *_: object) -> None:
        """The same for a block: its parts need not be asked where there is room for all of it.

        What a block takes is an estimate until one of its kind has run.
        """
        if self._limit is None:
            return
        self._note(self._held()[0])
        whole = self._block
        if self._kinds and kind in self._took:
            whole = min(whole, self._took[kind] + SHARED)  # it may come to lie in other places
        again = self._again if self._kinds and kind in self._ran else None
        coming = whole if again is None else again
        held, allocated = self._give_back(coming, self._limit)
        if kind not in self._ran:  # or memory went back just now
            coming = whole
        self._roomy = held + coming <= self._limit
        self._running, self._start = kind, allocated
        self._ran.add(kind)

    def _keep_inside(self) -> None:
        """The same for a part of a block."""
        if not self._roomy:
            self.keep()

    def _note(self, held: int) -> None:
        """Notes what the block has taken so far, at most: torch holds it until it goes back."""
        if self._running is not None:
            took = max(self._took.get(self._running, 0), held - self._start)
            self._took[self._running] = took

    def make_room(self, nbytes: int) -> None:
        """The same before so many bytes are taken outside of a forward."""
        self._give_back(nbytes, self.nbytes if self._limit is None else self._limit)

    def _give_back(self, coming: int, limit: int) -> tuple[int, int]:
        """Gives it back if so much more could pass the limit; returns as `_held` does."""
        held, allocated = self._held()
        self._note(held)
        self._stuck = min(self._stuck, held - allocated)
        if held + coming > limit and held - allocated >= self._stuck + SEGMENT:
            self.before()
            torch.cuda.empty_cache()
            self._ran.clear()
            before, (held, allocated) = held, self._held()
            self._start -= before - held  # what went back has been taken, too
            self._stuck = held - allocated
        return held, allocated

    def _held(self) -> tuple[int, int]:
        """Bytes that torch holds, and those of them that are in use."""
        stats = torch.cuda.memory_stats_as_nested_dict(self.device)
        if not stats:  # before the first tensor on any device
            return 0, 0
        held, allocated = (
            stats[f"{each}_bytes"]["all"]["current"] for each in ("reserved", "allocated")
        )
        return held, allocated


def taken_again(geometry: Geometry, dtype: torch.dtype, work: Work) -> int | None:
    """Bytes that torch takes for a block beyond what one of the same form before it has freed.

    Args:
        geometry: of the model.
        dtype: of its cache.
        work: of the forward.

    Returns:
        None if that cannot be told: what the cache leaves may be too small for what it comes to.
    """
    if not work.past:  # each block adds its part
        return work.sequences * work.new * geometry.kept * dtype.itemsize + SHARED
    tokens = work.past + work.new
    if any(0 < window < tokens for window in geometry.windows):
        return None  # how much a window's layers keep depends on the cache
    for width in (geometry.values, geometry.kept - geometry.values):
        row = work.sequences * width * dtype.itemsize
        shared = row * work.past <= SHARED // 2
        if shared or _segments(row * work.past) != _segments(row * tokens):
            return None
    return SHARED


def _segments(nbytes: int) -> int:
    """How many of them a tensor takes that has memory of its own."""
    return -(-nbytes // SEGMENT)


def _called(function: Callable[[], object], *_: object) -> None:
    """As a hook."""
    function()
