"""Weights whose elements lie in another order than their indices, as a transposed one's do.

torch.save writes such a tensor as the memory that it is a view of. No layer store is written so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from typing_extensions import Self, override

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit, nbytes


@dataclass(frozen=True)
class Strided(Codec):
    """The stored bytes are the memory from a view's first element to its last.

    Attributes:
        strides: of the view, in bytes.
        shape: of the view.
        itemsize: bytes of an element.
    """

    strides: tuple[int, ...]
    shape: tuple[int, ...]
    itemsize: int

    name = "strided"
    allocates = False
    in_place = False

    @classmethod
    def of(cls, view: torch.Tensor) -> Self:
        """That of a tensor, whatever memory it is a view of."""
        size = view.element_size()
        return cls(tuple(size * step for step in view.stride()), tuple(view.shape), size)

    @property
    def span(self) -> int:
        """Bytes from the first element to the end of the last."""
        steps = zip(self.shape, self.strides, strict=True)
        return self.itemsize + sum((count - 1) * step for count, step in steps)

    @override
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        return {"": Layout(torch.uint8, (self.span,))}

    @override
    def unit(self, weight: Layout) -> Unit:
        return Unit((self.span,), nbytes(weight))

    @override
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        shape, strides = (*self.shape, self.itemsize), (*self.strides, 1)
        view = np.lib.stride_tricks.as_strided(stored[0], shape, strides, writeable=False)
        target.reshape(shape)[...] = view

    @override
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        shape, strides = (*self.shape, self.itemsize), (*self.strides, 1)
        target.view(shape).copy_(stored[0].as_strided(shape, strides))
