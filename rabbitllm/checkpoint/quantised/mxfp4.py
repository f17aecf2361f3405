"""MXFP4 as gpt-oss is published: floats of 4 bits, and an exponent for 32 of them.

Only experts are: `blocks` [experts, out, in / 32, 16 bytes], `scales` [experts, out, in / 32]. The
model computes with the transposed matrices, [experts, in, out].
"""

from rabbitllm.checkpoint.codecs.scaled import E8M0, Scaled
from rabbitllm.checkpoint.quantised.parts import Parts, Scheme
from rabbitllm.checkpoint.tensors import TensorEntry

GROUP = 32


def _entry(parts: Parts) -> TensorEntry:
    shape = parts.tensors["_blocks"].shape
    if len(shape) != 4 or 2 * shape[-1] != GROUP:
        raise parts.error("blocks have 16 bytes")
    experts, rows, groups, _ = shape
    columns = groups * GROUP
    codec = Scaled(parts.dtype_name, "e2m1", columns, 1, GROUP, E8M0, transposed=rows)
    return parts.entry(codec, (experts, columns, rows), "_blocks", "_scales")


SCHEMES = (Scheme(("_blocks", "_scales"), _entry, target=""),)
