"""The form of the blocks that share a scale, as the shapes of weight and scales tell it."""

from collections.abc import Sequence

from rabbitllm.checkpoint.codecs.scaled import E8M0, SCALES
from rabbitllm.checkpoint.quantised.parts import Parts
from rabbitllm.checkpoint.tensors import RAW, TensorEntry

_NAMES = {dtype: name for name, dtype in SCALES.items()} | {RAW: E8M0}


def scale_name(parts: Parts, suffix: str) -> str:
    """How the scales of that suffix are written: a key of `codecs.scaled.SCALES`."""
    dtype = parts.tensors[suffix].dtype
    if dtype not in _NAMES:
        raise parts.error(f"scales in {dtype} are not known")
    return _NAMES[dtype]


def block_of(
    parts: Parts,
    shape: Sequence[int],
    scales: TensorEntry,
    usual: Sequence[int] | None = None,
    prefer_even: bool = False,
) -> tuple[int, int]:
    """Rows and columns of a block.

    Args:
        parts: for the message.
        shape: of the weight: [..., rows, columns].
        scales: [..., rows of blocks, columns of blocks]; with one dimension less one for each row,
            and a single one is for all.
        usual: the form that the config names. It counts where it fits: the last blocks of a row or
            column may be smaller.
        prefer_even: blocks of the same form count first, where there are as many.

    Raises:
        CheckpointError: blocks of no form are so many.
    """
    rows, columns = shape[-2:]
    grid = scales.shape
    if all(size == 1 for size in grid):
        return max(1, rows), columns
    down, across = grid[-2:] if len(grid) > 1 else (grid[-1], 1)
    even = bool(down and across) and not (rows % down or columns % across)
    fits = usual and (-(-rows // usual[0]), -(-columns // usual[1])) == (down, across)
    if usual and fits and not (even and prefer_even):
        return usual[0], usual[1]
    if not even:
        raise parts.error("the scales fit no blocks of the weight")
    return rows // down, columns // across
