"""A matrix times a vector on a CPU, as quick as memory: a loop that numba compiles.

Of 16-bit matrices torch's own product gets through 4 to 11 GB/s a thread, whatever the memory could
bring; this one through up to three times as many. Each thread reads two long streams in order: one
alone leaves an Intel Xeon's memory idle (12 threads read 53 GB/s so, and 71 to 75 two by two), and
short ones keep an AMD EPYC from reading ahead.

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


@njit(nogil=True, fastmath=True)
def _multiply_two(first, second, vector):
    """A vector's products with two rows, all of pairs of bfloat16.

    The vector is kept in pairs as well: twice as much of it fits beside the rows in a core's cache.
    """
    one = two = one_more = two_more = f32(0)
    for place in range(len(vector)):
        # A bfloat16 is the upper half of the float32 of the same value.
        lower, upper = u32(vector[place] << HALF).view(f32), u32(vector[place] & UPPER).view(f32)
        one += u32(first[place] << HALF).view(f32) * lower
        two += u32(second[place] << HALF).view(f32) * lower
        one_more += u32(first[place] & UPPER).view(f32) * upper
        two_more += u32(second[place] & UPPER).view(f32) * upper
    return one + one_more, two + two_more


def _multiply(matrix, vector, product, parts):
    """Multiplies; sums are in float32, in an order that the compiler chooses.

    Args:
        matrix: uint32 [rows, columns / 2], of two bfloat16 each, on a machine whose lower half of a
            word is the first.
        vector: uint32 [columns / 2], likewise.
        product: float32 [rows], where the sums go.
        parts: in which rows are shared out: as many as there are threads. Each reads its halves.
    """
    for part in prange(parts):
        first, last = len(matrix) * part // parts, len(matrix) * (part + 1) // parts
        half = (last - first) // 2
        for number in range(first, first + half):
            two = _multiply_two(matrix[number], matrix[number + half], vector)
            product[number], product[number + half] = two
        if last - first > 2 * half:  # one row is left, which is read as both
            product[last - 1] = _multiply_two(matrix[last - 1], matrix[last - 1], vector)[0]


multiply = keep(njit(nogil=True, parallel=True, fastmath=True)(_multiply))
