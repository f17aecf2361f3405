"""Weights that a checkpoint holds in another dtype of floats: rounded as torch does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from typing_extensions import override

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit


@dataclass(frozen=True)
class Cast(Codec):
    """Each element is stored in a dtype, and computes in another.

    Attributes:
        source: as it is stored.
        target: as it computes.
    """

    name = "cast"
    allocates = False
    source: torch.dtype
    target: torch.dtype

    @override
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        if weight.dtype != self.target:
            raise ValueError(f"{self} makes no {weight.dtype}")
        return {"": Layout(self.source, weight.shape)}

    @override
    def unit(self, weight: Layout) -> Unit:
        return Unit((self.source.itemsize,), self.target.itemsize)

    @override
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        self.decode_on([torch.from_numpy(stored[0])], torch.from_numpy(target))

    @override
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        target.view(self.target).copy_(stored[0].view(self.source))
