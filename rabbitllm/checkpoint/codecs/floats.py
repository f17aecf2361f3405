"""Rounding float32 to what models compute in, to the nearest, ties to even; on the calling thread.

By torch, whose conversions are several times as fast as numpy's, in parts so small that it does not
share them among threads.
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from rabbitllm.checkpoint.codecs.codec import Bytes

Floats: TypeAlias = npt.NDArray[np.float32]

GRAIN = 1 << 15
"""Elements that torch works on in one thread (at::internal::GRAIN_SIZE)."""


def write(
    values: Floats, rounded: torch.dtype, dtype: torch.dtype, target: Bytes, spare: Bytes
) -> None:
    """Writes values in a dtype.

    Args:
        values: float32 [rows, columns], contiguous; they may come back rounded.
        rounded: bfloat16, float16 or float32: to which they are rounded first.
        dtype: one of these: what is written.
        target: [rows, columns, bytes of an element], in any strides but for the last.
        spare: as many bytes as the values have, to work in.
    """
    straight = target.flags.c_contiguous
    flat = torch.from_numpy(values.reshape(-1))
    written = target if straight else spare[: target.size].reshape(target.shape)
    made = torch.from_numpy(written.reshape(-1)).view(dtype)
    if rounded not in (torch.float32, dtype):
        between = torch.from_numpy(spare).view(rounded)[: len(flat)]
        _copy(flat, between)
        _copy(between, flat)
    _copy(flat, made)
    if not straight:
        # Neighbours here are far apart there: in two steps it takes half as long.
        kind = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
        turned = flat.view(kind)[: len(made)].view(values.shape[::-1])
        turned.copy_(made.view(kind).view(values.shape).t())
        there = target.view(turned.numpy().dtype)[..., 0].swapaxes(0, 1)
        np.copyto(there, turned.numpy())


def _copy(source: torch.Tensor, target: torch.Tensor) -> None:
    """Converts elements, on the calling thread alone and in one call.

    Threads that decode hand Python's lock around at each call.
    """
    torch._foreach_copy_(target.split(GRAIN), source.split(GRAIN))
