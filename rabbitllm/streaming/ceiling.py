"""What torch holds on a CUDA device, unused memory included, kept below a budget.

torch's allocator keeps what is freed, for requests of the same size. A cache that grows asks for
another size at every growth, layer by layer, so that a whole cache of freed memory collects: of a
prompt of 16,000 tokens in 14 chunks 0.74 GiB (7B shape, H100), which no other process can use and
no estimate of what is in use holds. Before a block adds to it, such memory goes back.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from rabbitllm.streaming.working import Geometry, Work, passing_bytes

SEGMENT = 2 << 20
"""Bytes that torch's allocator takes at least, and gives back at least
(https://docs.pytorch.org/docs/stable/notes/cuda.html#memory-management)."""


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
    _coming: int = field(default=0, init=False)
    _limit: int | None = field(default=None, init=False)
    _stuck: int = field(default=0, init=False)  # not in use, and could not be given back last time

    def watch(self, blocks: Iterable[nn.Module]) -> None:
        """Keeps to it in every forward of these blocks."""
        for block in blocks:
            block.register_forward_pre_hook(lambda *_: self.keep())

    def begin(self, work: Work, others: int = 0) -> None:
        """Finds out whether a forward with this work may come near the budget.

        What is not in use goes back first where it is in the way. As a rule that is enough for many
        forwards: to ask the allocator before each block takes the host time, too.

        Args:
            work: of the forward.
            others: bytes of caches beside its own that the budget counts, too.
        """
        self._limit = None
        self._coming = passing_bytes(self.geometry, self.dtype, self.device, work)
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
        """Gives back what is not in use, if what a block takes could make it too much.

        What that costs, a wait for the device, is paid only by work that comes near the budget, and
        only for memory that was not there last time: what lies between tensors stays.
        """
        if self._limit is not None:
            self._give_back(self._coming, self._limit)

    def make_room(self, nbytes: int) -> None:
        """The same before so many bytes are taken outside of a forward."""
        self._give_back(nbytes, self.nbytes if self._limit is None else self._limit)

    def _give_back(self, coming: int, limit: int) -> None:
        held, allocated = self._held()
        self._stuck = min(self._stuck, held - allocated)
        if held + coming > limit and held - allocated >= self._stuck + SEGMENT:
            self.before()
            torch.cuda.empty_cache()
            held, allocated = self._held()
            self._stuck = held - allocated

    def _held(self) -> tuple[int, int]:
        """Bytes that torch holds, and those of them that are in use."""
        stats = torch.cuda.memory_stats_as_nested_dict(self.device)
        if not stats:  # before the first tensor on any device
            return 0, 0
        held, allocated = (
            stats[f"{each}_bytes"]["all"]["current"] for each in ("reserved", "allocated")
        )
        return held, allocated
