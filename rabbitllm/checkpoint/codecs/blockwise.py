"""What bitsandbytes writes beyond codes and scales: scales that are quantised, and int8 by rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from typing_extensions import override

from rabbitllm.checkpoint.codecs.codec import Bytes, Codec, Layout, Unit, elements
from rabbitllm.checkpoint.codecs.floats import write
from rabbitllm.checkpoint.codecs.scaled import AT_ONCE, FLOATS, SCALES, Scaled

LEVELS = 256
"""Values of a quantised scale."""
PART = np.float32(7.874015718698502e-3)
"""1 / 127, of which codes are so many."""


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


@dataclass(frozen=True)
class Rows(Codec):
    """How a matrix is stored that is int8, of which 127 is the most in its row: LLM.int8().

    Attributes:
        dtype: of the weight: "bfloat16", "float16" or "float32".
        columns: of the weight.
    """

    dtype: str
    columns: int

    name = "rows"
    exact = False

    def __post_init__(self) -> None:
        if self.dtype not in FLOATS or self.columns < 1:
            raise ValueError(f"no weight is stored as {self}")

    @property
    @override
    def scratch(self) -> int:
        return 2 * self._at_once * self.columns * torch.float32.itemsize

    @override
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        rows, rest = divmod(elements(weight.shape), self.columns)
        if rest or weight.dtype != SCALES[self.dtype]:
            raise ValueError(f"{weight.shape} is not stored as {self}")
        return {
            "": Layout(torch.int8, (rows, self.columns)),
            ".most": Layout(torch.float32, (rows,)),
        }

    @override
    def unit(self, weight: Layout) -> Unit:
        return Unit((self.columns, torch.float32.itemsize), self.columns * weight.dtype.itemsize)

    @override
    @np.errstate(over="ignore", invalid="ignore")
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        codes = stored[0].view(np.int8).reshape(-1, self.columns)
        made = target.reshape(*codes.shape, -1)
        most = stored[1].view(np.float32).reshape(-1, 1)
        for first in range(0, len(codes), self._at_once):
            some = slice(first, first + self._at_once)
            size = codes[some].size * torch.float32.itemsize
            values = scratch[:size].view(np.float32).reshape(codes[some].shape)
            np.copyto(values, codes[some])
            np.multiply(values, most[some], out=values)
            np.multiply(values, PART, out=values)
            write(values, SCALES[self.dtype], made[some], scratch[size : 2 * size])

    @override
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        values = stored[0].view(torch.int8).view(-1, self.columns).float()
        values *= stored[1].view(torch.float32).view(-1, 1)
        values *= float(PART)
        target.view(SCALES[self.dtype]).view(values.shape).copy_(values)

    @property
    def codes(self) -> Scaled:
        """The same, but for `PART`, which the product of code and scale is multiplied by."""
        return Scaled(self.dtype, "int8", self.columns, 1, self.columns, "float32")

    @property
    def _at_once(self) -> int:
        """Rows that are decoded together."""
        return max(1, AT_ONCE // self.columns)
