"""Weights that are stored as they compute: their elements, one after the other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from typing_extensions import Self, override

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit


@dataclass(frozen=True)
class Plain(Codec):
    """The stored bytes are the weight's own, so that they can also be used where they lie."""

    name = "plain"
    allocates = False

    @override
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        return {"": weight}

    @override
    def unit(self, weight: Layout) -> Unit:
        return Unit((1,), 1)

    @override
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        target[:] = stored[0]

    @override
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        target.copy_(stored[0], non_blocking=True)

    @classmethod
    @override
    def expected(cls, weight: Layout) -> Self | None:
        return cls()

    @classmethod
    @override
    def encode(cls, weight: torch.Tensor) -> tuple[Self, dict[str, torch.Tensor]]:
        return cls(), {"": weight}


PLAIN = Plain()
