"""Codes times the scales of their blocks, by numpy: some rows at a time, which a cache holds."""

import numpy as np

from rabbitllm.checkpoint.codecs.codec import Bytes
from rabbitllm.checkpoint.codecs.floats import Floats

AT_ONCE = 1 << 19
"""Elements that one instruction of numpy works on. They stay in the cache that cores share; in one
core's they would as well, but with so few, threads spend their time on handing Python's lock
around: two of them decode FP8 at 2.7 GB/s with 2^17, at 4.4 with 2^19 (2 cores)."""
FLOAT = 4
"""Bytes of a value."""


def rows_at_once(columns: int) -> int:
    """Rows of so many columns that are decoded at once."""
    return max(1, AT_ONCE // columns)


def room(rows: int, columns: int) -> int:
    """Bytes that `values_in` takes."""
    return 2 * rows * columns * FLOAT


def values_in(scratch: Bytes, rows: int, columns: int) -> tuple[Floats, Bytes]:
    """An array of values in scratch, float32 [rows, columns]; and as much again to work in."""
    size = room(rows, columns) // 2
    return scratch[:size].view(np.float32).reshape(rows, columns), scratch[size : 2 * size]


def on_blocks(operation: np.ufunc, values: Floats, others: Floats, width: int) -> None:
    """Works on values with others of their blocks, in place.

    Args:
        operation: takes one of each.
        values: float32 [rows, columns].
        others: float32 [rows or 1, blocks].
        width: columns of a block, but for the last ones of a row if they are fewer.
    """
    columns = values.shape[1]
    if columns % width or len(others) == 1:
        wide = np.repeat(others, width, axis=1)[:, :columns]
        operation(values, wide, out=values)
    else:
        blocks = values.reshape(len(values), -1, width)
        operation(blocks, others[:, :, None], out=blocks)
