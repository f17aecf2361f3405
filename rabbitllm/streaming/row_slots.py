"""Memory of rows of weights: bytes to fill, words to move, and the weights that they are."""

from collections.abc import Iterable, Sequence

import torch

from rabbitllm.streaming.binding import marked
from rabbitllm.streaming.buffers import as_held
from rabbitllm.streaming.weights import Weight


class RowSlots:
    """Slots on one device, each of which a row of any stage fits in.

    Args:
        memory: uint8 [slots, bytes], on the device.

    Attributes:
        memory: that.
    """

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory = memory
        self._slots = memory.unbind()
        self._words = memory.view(torch.int64).unbind()  # what kernels copy quicker than bytes
        self._views: dict[tuple[object, ...], torch.Tensor] = {}

    def __len__(self) -> int:
        """How many there are."""
        return len(self._slots)

    def __getitem__(self, slot: int) -> torch.Tensor:
        """The bytes of one: uint8 [bytes]."""
        return self._slots[slot]

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a view of it."""
        mine = self.memory.untyped_storage().data_ptr()
        return tensor.untyped_storage().data_ptr() == mine

    def move(self, moved: Sequence[tuple[int, int]]) -> None:
        """Copies rows from slots to others, each of which is read from before it is written to."""
        if not moved:
            return
        sources, targets = zip(*moved, strict=True)
        if set(sources).isdisjoint(targets):
            torch._foreach_copy_(self._of(targets), self._of(sources))
        else:
            for source, target in moved:
                self._words[target].copy_(self._words[source])

    def view(self, weight: Weight, first: int, count: int) -> torch.Tensor:
        """A weight, as modules hold it, of which so many slots in a row have one row each.

        Args:
            weight: as it is in a row's stage.
            first: the first of these slots.
            count: how many they are.
        """
        key = weight.dtype, weight.offset, weight.shape, first, count
        if (view := self._views.get(key)) is None:
            view = self._make_view(weight, first, count)
            if count == 1 or weight.shape[0] == 1:
                self._views[key] = view
        return view

    def _of(self, slots: Iterable[int]) -> list[torch.Tensor]:
        return [self._words[slot] for slot in slots]

    @torch.inference_mode(False)
    def _make_view(self, weight: Weight, first: int, count: int) -> torch.Tensor:
        memory = self.memory[first : first + count, weight.offset : weight.offset + weight.nbytes]
        rows = memory.view(weight.dtype).view(count, *weight.shape)
        # Of a common matrix of all experts, which has no gaps, a row is several: that is a copy.
        return marked(as_held(weight, rows.flatten(0, 1)))
