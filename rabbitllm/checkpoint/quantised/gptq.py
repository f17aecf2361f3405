"""GPTQ as AutoGPTQ and GPTQModel write it: integers of 2, 4 or 8 bits in groups of a row.

`qweight` [in * bits / 32, out], `qzeros` [in / group, out * bits / 32], `scales` [in / group, out],
and `g_idx` [in], the group of each column: with `desc_act` they are in the order of importance.
Zero points are stored less 1, but for the format `gptq_v2`.
"""

import torch

from rabbitllm.checkpoint.codecs.words import WORD, Words
from rabbitllm.checkpoint.quantised.grids import scale_name
from rabbitllm.checkpoint.quantised.parts import Parts, Scheme
from rabbitllm.checkpoint.tensors import TensorEntry

SUFFIXES = (".qweight", ".qzeros", ".scales")
FORMATS = {"gptq": 1, "gptq_v2": 0}
"""How words are laid out -> what zero points are stored less."""
BITS = (2, 4, 8)


def entry_of_words(
    parts: Parts, added: int = 0, interleaved: bool = False, index: str | None = None
) -> TensorEntry:
    """The weight that tensors of `SUFFIXES` are.

    Args:
        parts: they.
        added: to zero points.
        interleaved: words are AWQ's.
        index: the suffix of what says the group of each column.
    """
    words, zeros, scales = (parts.tensors[suffix] for suffix in SUFFIXES)
    groups, rows = scales.shape
    bits = WORD * zeros.shape[1] // max(1, rows)
    if bits not in BITS:
        raise parts.error(f"integers of {bits} bits are not read, only of {BITS}")
    columns = words.shape[0] if interleaved else words.shape[0] * WORD // bits
    usual = parts.settings.get("group_size", parts.settings.get("q_group_size"))
    width = usual if usual and usual > 0 else columns
    if -(-columns // width) != groups:
        if columns % max(1, groups):
            raise parts.error("the scales fit no groups of the weight")
        width = columns // groups
    stored: tuple[str, ...] = SUFFIXES
    if index and not torch.equal(parts.read(index).long(), torch.arange(columns) // width):
        stored = (*SUFFIXES, index)
    codec = Words(
        parts.dtype_name,
        bits,
        columns,
        width,
        scale_name(parts, ".scales"),
        added,
        interleaved,
        indexed=stored != SUFFIXES,
    )
    return parts.entry(codec, (rows, columns), *stored)


def _entry(parts: Parts) -> TensorEntry:
    written = parts.settings.get("checkpoint_format") or parts.settings.get("format") or "gptq"
    if written not in FORMATS:
        known = ", ".join(FORMATS)
        raise parts.error(f"of GPTQ's formats {known} are read, this is {written!r}")
    index = ".g_idx" if ".g_idx" in parts.tensors else None
    return entry_of_words(parts, FORMATS[written], index=index)


INDEX = frozenset({".g_idx"})
SCHEMES = (Scheme((*SUFFIXES, *INDEX), _entry, optional=INDEX, telling=INDEX),)
