"""Codes with scales that are quantised themselves, as bitsandbytes writes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from typing_extensions import override

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit, elements
from rabbitllm.checkpoint.codecs.scaled import Scaled

LEVELS = 256
"""Values of a quantised scale."""


@dataclass(frozen=True)
class Nested(Codec):
    """How a weight is stored whose scales are quantised: "double quantisation" (QLoRA, 3).

        scale = levels[code] * nested_scale + offset

    Attributes:
        codes: how the weight's codes are stored, and their scales in float32, one for each row.
        block: scales that share a nested one.
        offset: that was taken from the scales.
    """

    codes: Scaled
    block: int
    offset: float

    name = "nested"
    exact = False

    def __post_init__(self) -> None:
        one_each = self.codes.rows == 1 and self.codes.width == self.codes.columns
        if not one_each or self.codes.scale != "float32" or self.codes.zeros or self.block < 1:
            raise ValueError(f"no weight is stored as {self}")

    @property
    @override
    def scratch(self) -> int:
        return self.codes.scratch

    @override
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        codes, scales = self.codes.stored(weight).values()
        count = elements(scales.shape)
        return {
            "": codes,
            ".scale": Layout(torch.uint8, (count,)),
            ".nested": Layout(torch.float32, (-(-count // self.block),)),
            ".levels": Layout(torch.float32, (LEVELS,)),
        }

    @override
    def unit(self, weight: Layout) -> Unit:
        (codes, _), decoded = self.codes.unit(weight)
        nested = torch.float32.itemsize
        return Unit((self.block * codes, self.block, nested, 0), self.block * decoded)

    @override
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        levels, nested = stored[3].view(np.float32), stored[2].view(np.float32)
        scales = levels[stored[1]]
        scales *= np.repeat(nested, self.block)[: len(scales)]
        scales += np.float32(self.offset)
        self.codes.decode([stored[0], scales.view(np.uint8)], target, scratch)

    @override
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        self.codes.decode_on([stored[0], self.scales_on(stored)], target)

    def scales_on(self, stored: Sequence[torch.Tensor]) -> torch.Tensor:
        """The scales of the codes: float32, as uint8."""
        levels, nested = stored[3].view(torch.float32), stored[2].view(torch.float32)
        scales = levels[stored[1].int()]
        # Not by repeat_interleave, which waits for the device.
        scales *= nested[:, None].expand(-1, self.block).reshape(-1)[: len(scales)]
        # Two roundings, as of a product and then of a sum: no device may do both in one.
        return scales.add_(self.offset).view(torch.uint8)
