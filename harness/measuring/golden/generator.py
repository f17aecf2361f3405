"""Weights and token ids from a counter: the same bits on every platform, whatever is installed.

SplitMix64 (Steele, Lea and Flood, 2014, https://doi.org/10.1145/2714064.2660195) gives 64 bits for
each place of a tensor. Values are small integers times a power of two: at most 8 significant bits,
so float32, float16 and bfloat16 all hold them exactly, and nothing is rounded on the way.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

STEP = 0x9E3779B97F4A7C15
"""SplitMix64's: what the counter grows by from place to place."""
MIXING = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
"""SplitMix64's rounds: a shift, then a factor."""


def bits(name: str, count: int) -> NDArray[np.uint64]:
    """64 random bits for each place of what has this name, [count]."""
    begin = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    # In integers of Python, which never warn of a product past 64 bits, as scalars of numpy do.
    start = np.array([begin], dtype=np.uint64)
    places = np.arange(1, count + 1, dtype=np.uint64)
    mixed: NDArray[np.uint64] = start + places * np.array([STEP], dtype=np.uint64)
    for shift, factor in MIXING:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.array([factor], dtype=np.uint64)
    return mixed ^ (mixed >> np.uint64(31))


def token_ids(name: str, count: int, first: int, end: int) -> list[int]:
    """Ids from `first` to `end` - 1."""
    return [first + int(value) % (end - first) for value in bits(name, count)]


def weight(name: str, key: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """The values of a tensor, float32 of this shape, none of them 0.

    A bias lies between -1 and 1, a norm's weight between 0.75 and 1.25, a matrix between the power
    of two from 2 / sqrt(fan-in) up and its opposite: activations stay near 1, so that every part of
    a model matters, and rounding stays small.

    Args:
        name: of the checkpoint; another gets other values.
        key: the tensor's, which tells a bias.
        shape: of the tensor; the first dimension is that of the output.
    """
    byte = (bits(f"{name}/{key}", math.prod(shape)) >> np.uint64(56)).astype(np.int32)
    if key.endswith("bias"):
        whole, exponent = 2 * byte - 255, -8
    elif len(shape) == 1:
        whole, exponent = 96 + byte // 4, -7
    else:
        whole, exponent = 2 * byte - 255, -8 - halvings(math.prod(shape[1:]))
    return np.ldexp(whole.astype(np.float32), exponent).astype(np.float32).reshape(shape)


def halvings(fan_in: int) -> int:
    """The largest n for which 2 ** -n is at least 2 / sqrt(fan_in); 0 if there is none."""
    return max((fan_in.bit_length() - 1) // 2 - 1, 0)


def encoded(values: NDArray[np.float32], dtype: str) -> bytes:
    """Values as a safetensors file of this dtype (F32, F16 or BF16) holds them.

    Raises:
        ValueError: the dtype cannot hold them.
    """
    stored: NDArray[Any]
    if dtype == "BF16":
        stored = (values.view(np.uint32) >> np.uint32(16)).astype("<u2")
        again = (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        stored = values.astype({"F32": "<f4", "F16": "<f2"}[dtype])
        again = stored.astype(np.float32)
    if not np.array_equal(values, again):
        raise ValueError(f"{dtype} would round these values")
    return stored.tobytes()
