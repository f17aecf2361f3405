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


def round_to(values: Floats, dtype: torch.dtype, spare: Bytes) -> None:
    """Rounds values in place to those that a dtype has.

    Args:
        values: float32, contiguous.
        dtype: bfloat16, float16 or float32.
        spare: as many bytes as the values have, to work in.
    """
    if dtype == torch.float32:
        return
    flat = torch.from_numpy(values.reshape(-1))
    rounded = torch.from_numpy(spare)[: GRAIN * dtype.itemsize].view(dtype)
    for part in flat.split(GRAIN):
        some = rounded[: len(part)]
        some.copy_(part)
        part.copy_(some)


def write(values: Floats, dtype: torch.dtype, target: Bytes, spare: Bytes) -> None:
    """Writes values in a dtype.

    Args:
        values: float32 [rows, columns], contiguous.
        dtype: bfloat16, float16 or float32.
        target: [rows, columns, bytes of an element], in any strides but for the last.
        spare: as many bytes as the values have, to work in.
    """
    if dtype == torch.float32:
        target.view(np.float32)[..., 0] = values
        return
    made = target if target.flags.c_contiguous else spare[: target.nbytes]
    rounded = torch.from_numpy(made.reshape(-1)).view(dtype)
    for part, some in zip(
        rounded.split(GRAIN), torch.from_numpy(values.reshape(-1)).split(GRAIN), strict=True
    ):
        part.copy_(some)
    if made is not target:
        target.view(np.uint16)[..., 0] = made.view(np.uint16).reshape(values.shape)
