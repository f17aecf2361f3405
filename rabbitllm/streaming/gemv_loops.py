"""A matrix times a vector on a CPU, as quick as memory: a loop that numba compiles.

Of 16-bit matrices torch's own product gets through 4 to 11 GB/s a thread, whatever the memory could
bring; this one reads each row once, in order, and gets through two to three times as many.

What was compiled is kept: see `kept_code`. It is one file, because what is kept of a function is
valid as long as the function's own file.
"""

import numpy as np
from numba import config, njit, prange

from rabbitllm.checkpoint.codecs.kept_code import keep

if vars(config)["DISABLE_JIT"]:
    raise ImportError("NUMBA_DISABLE_JIT is set")

UPPER = np.uint32(0xFFFF0000)
HALF = np.uint32(16)
u32, f32 = np.uint32, np.float32


def _multiply(matrix, even, odd, product):
    """Multiplies; sums are in float32, in an order that the compiler chooses.

    Args:
        matrix: uint32 [rows, columns / 2], of two bfloat16 each, on a machine whose lower half of a
            word is the first.
        even: float32 [columns / 2], elements 0, 2, ... of the vector.
        odd: the others.
        product: float32 [rows], where the sums go.
    """
    for number in prange(len(matrix)):
        row = matrix[number]
        first, second = f32(0), f32(0)
        for place in range(len(row)):
            pair = row[place]
            # A bfloat16 is the upper half of the float32 of the same value.
            first += u32(pair << HALF).view(f32) * even[place]
            second += u32(pair & UPPER).view(f32) * odd[place]
        product[number] = first + second


multiply = keep(njit(nogil=True, parallel=True, fastmath=True)(_multiply))
