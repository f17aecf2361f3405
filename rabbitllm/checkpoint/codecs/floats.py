"""Rounding float32 to what models compute in, as torch rounds; by numpy, on the calling thread."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from rabbitllm.checkpoint.codecs.codec import Bytes

Floats: TypeAlias = npt.NDArray[np.float32]

HALF_BELOW = 0x7FFF
"""Added to a float32's bits it carries into the upper half what is more than half a unit there."""


def round_to(values: Floats, dtype: torch.dtype, spare: Bytes) -> None:
    """Rounds values in place to those that a dtype has, to the nearest, ties to even.

    Args:
        values: float32, contiguous; of NaN there is numpy's own alone, quiet and of no other bits.
        dtype: bfloat16, float16 or float32.
        spare: as many bytes as the values have, to work in.
    """
    if dtype == torch.bfloat16:
        _round_bits(values, spare)
        bits = values.view(np.uint32)
        np.bitwise_and(bits, np.uint32(0xFFFF0000), out=bits)
    elif dtype == torch.float16:
        values[...] = values.astype(np.float16)


def write(values: Floats, dtype: torch.dtype, target: Bytes, spare: Bytes) -> None:
    """Writes values in a dtype, rounded to the nearest, ties to even.

    Args:
        values: float32 [rows, columns], contiguous, NaN as above; they are destroyed.
        dtype: bfloat16, float16 or float32.
        target: [rows, columns, bytes of an element], in any strides but for the last.
        spare: as many bytes as the values have, to work in.
    """
    if dtype == torch.bfloat16:
        _round_bits(values, spare)
        upper = values.view(np.uint16).reshape(*values.shape, 2)[..., 1]
        target.view(np.uint16)[..., 0] = upper
    else:
        kind = np.float16 if dtype == torch.float16 else np.float32
        target.view(kind)[..., 0] = values


def _round_bits(values: Floats, spare: Bytes) -> None:
    """Makes the upper halves of float32 bits those of the nearest bfloat16."""
    bits = values.view(np.uint32)
    odd = spare[: bits.nbytes].view(np.uint32).reshape(bits.shape)
    np.right_shift(bits, 16, out=odd)
    np.bitwise_and(odd, 1, out=odd)
    np.add(odd, HALF_BELOW, out=odd)
    np.add(bits, odd, out=bits)
