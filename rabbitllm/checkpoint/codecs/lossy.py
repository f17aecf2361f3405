"""Lossy: weights in 8 or 4 bits, and a scale for each block of them, for less to read.

8 bits are integers, up to 127 for the largest of a block; 4 bits are NF4, whose 16 values are near
to where weights are. Scales are bfloat16. So a bfloat16 weight takes 52% or 27% of its bytes.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from typing_extensions import Self, override

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit, elements
from rabbitllm.checkpoint.codecs.scaled import FLOATS, SCALES, Scaled
from rabbitllm.checkpoint.codecs.values import NF4

BLOCK = 64
"""Elements, neighbours in a row."""
LEAST = 1 << 16
"""Elements of the smallest weight that is worth encoding."""
AT_ONCE = 1 << 16
"""Blocks that are encoded together."""
MOST = 127
"""Of an integer: both signs have as many."""
_NAMES = {SCALES[name]: name for name in FLOATS}


@dataclass(frozen=True)
class Lossy(Codec):
    """How a weight of at least two dimensions is stored, each row in whole blocks.

    Attributes:
        into: dtype of the weight: "bfloat16", "float16" or "float32".
        kind: of the codes: a key of `values.VALUES`.
    """

    exact = False
    kind: ClassVar[str]
    into: str

    def __post_init__(self) -> None:
        if self.into not in FLOATS:
            raise ValueError(f"no weight is stored as {self}")

    @property
    def codes(self) -> Scaled:
        """The same as codes with a scale for each row, of the weight's blocks one after another."""
        return Scaled(self.into, self.kind, BLOCK, 1, BLOCK, "bfloat16")

    @property
    @override
    def scratch(self) -> int:
        return self.codes.scratch

    @override
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        return self.codes.stored(weight)

    @override
    def unit(self, weight: Layout) -> Unit:
        return self.codes.unit(weight)

    @override
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        self.codes.decode(stored, target, scratch)

    @override
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        self.codes.decode_on(stored, target)

    @classmethod
    @override
    def expected(cls, weight: Layout) -> Self | None:
        # What has one dimension is small, and models are sensitive to it.
        fits = len(weight.shape) > 1 and not weight.shape[-1] % BLOCK
        if weight.dtype not in _NAMES or elements(weight.shape) < LEAST or not fits:
            return None
        return cls(_NAMES[weight.dtype])

    @classmethod
    @override
    def encode(cls, weight: torch.Tensor) -> tuple[Self, dict[str, torch.Tensor]] | None:
        if not weight.isfinite().all():
            return None
        parts = [cls._encode(part.float()) for part in weight.reshape(-1, BLOCK).split(AT_ONCE)]
        codes, scales = map(torch.cat, zip(*parts, strict=True))
        return cls(_NAMES[weight.dtype]), {"": codes.view(torch.uint8), ".scale": scales}

    @classmethod
    @abstractmethod
    def _encode(cls, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [blocks, bytes] and scales [blocks, 1] of float32 [blocks, `BLOCK`]."""


@dataclass(frozen=True)
class EightBit(Lossy):
    """Integers of 8 bits."""

    name = "8bit"
    kind = "int8"

    @classmethod
    @override
    def _encode(cls, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scales = (blocks.abs().amax(1, keepdim=True) / MOST).bfloat16()
        # What a scale that is rounded down leaves out is less than half a step.
        return _divided(blocks, scales).round_().clamp_(-MOST, MOST).to(torch.int8), scales


@dataclass(frozen=True)
class FourBit(Lossy):
    """NF4."""

    name = "4bit"
    kind = "nf4"

    @classmethod
    @override
    def _encode(cls, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scales = blocks.abs().amax(1, keepdim=True).bfloat16()
        values = torch.tensor(NF4, device="cpu")
        between = (values[1:] + values[:-1]) / 2
        codes = torch.bucketize(_divided(blocks, scales), between).to(torch.uint8)
        return codes[:, ::2] | codes[:, 1::2] << 4, scales


def _divided(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Blocks in units of their scales; 0 for those whose scale is."""
    divided = blocks / scales
    return torch.where(scales == 0, torch.zeros((), device="cpu"), divided)
