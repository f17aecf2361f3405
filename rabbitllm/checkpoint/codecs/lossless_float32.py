"""Lossless for float32: the upper halves as bfloat16, which they are, and the lower as they lie.

So 28 of 32 bits are stored, and decode nearly as fast as they are copied.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from typing_extensions import Self, override

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit, elements
from rabbitllm.checkpoint.codecs.lossless import AT_ONCE, BLOCK, Lossless

HALF = torch.bfloat16.itemsize
TOGETHER = AT_ONCE * BLOCK * HALF
"""Bytes of upper halves that are decoded together."""


@dataclass(frozen=True)
class LosslessFloat32(Codec):
    """How a float32 tensor is stored.

    Attributes:
        lowest: see `Lossless`, of the upper halves.
        outliers: see there.
    """

    name = "lossless-float32"
    lowest: int
    outliers: int

    def __post_init__(self) -> None:
        Lossless(self.lowest, self.outliers)

    @property
    def upper(self) -> Lossless:
        """How the upper halves are stored."""
        return Lossless(self.lowest, self.outliers)

    @property
    @override
    def scratch(self) -> int:
        return self.upper.scratch + TOGETHER

    @override
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        if weight.dtype != torch.float32:
            raise ValueError(f"{weight.dtype} is not stored as {self}")
        (upper,) = self.upper.stored(Layout(torch.bfloat16, weight.shape)).values()
        return {"": upper, ".low": Layout(torch.int16, (elements(weight.shape),))}

    @override
    def unit(self, weight: Layout) -> Unit:
        (size,), decoded = self.upper.unit(Layout(torch.bfloat16, weight.shape))
        return Unit((size, decoded), 2 * decoded)

    @override
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        (size,), _ = self.upper.unit(Layout(torch.bfloat16, ()))
        halves = target.view(np.uint16)
        halves[::2] = stored[1].view(np.uint16)
        upper, room = halves[1::2], scratch[TOGETHER:]
        for number, first in enumerate(range(0, len(upper), AT_ONCE * BLOCK)):
            some = upper[first : first + AT_ONCE * BLOCK]
            made = scratch[: HALF * len(some)]
            coded = stored[0][number * AT_ONCE * size :][: AT_ONCE * size]
            self.upper.decode([coded], made, room)
            some[:] = made.view(np.uint16)

    @override
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        upper = torch.empty(len(target) // 2, dtype=torch.uint8, device=target.device)
        self.upper.decode_on(stored[:1], upper)
        self.join(upper, stored[1], target)

    @staticmethod
    def join(upper: torch.Tensor, low: torch.Tensor, target: torch.Tensor) -> None:
        """Puts the halves of elements in their places; all uint8."""
        halves = target.view(torch.int16).view(-1, 2)
        halves[:, 0], halves[:, 1] = low.view(torch.int16), upper.view(torch.int16)

    @classmethod
    @override
    def expected(cls, weight: Layout) -> Self | None:
        if weight.dtype != torch.float32:
            return None
        upper = Lossless.expected(Layout(torch.bfloat16, weight.shape))
        return cls(upper.lowest, upper.outliers) if upper else None

    @classmethod
    @override
    def encode(cls, weight: torch.Tensor) -> tuple[Self, dict[str, torch.Tensor]] | None:
        low, upper = weight.reshape(-1, 1).view(torch.int16).unbind(1)
        if (found := Lossless.encode(upper.contiguous().view(torch.bfloat16))) is None:
            return None
        codec, stored = found
        return cls(codec.lowest, codec.outliers), stored | {
            ".low": low.clone(memory_format=torch.contiguous_format)
        }
