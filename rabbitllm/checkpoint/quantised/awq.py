"""AWQ as AutoAWQ writes it: integers of 4 bits in groups of a row, with zero points.

`qweight` [in, out / 8], `qzeros` [in / group, out / 8] and `scales` [in / group, out], of which
`version` says the order in a word; GEMM's is read, as nearly all are published.
"""

from rabbitllm.checkpoint.quantised.gptq import SUFFIXES, entry_of_words
from rabbitllm.checkpoint.quantised.parts import Parts, Scheme
from rabbitllm.checkpoint.tensors import TensorEntry


def _entry(parts: Parts) -> TensorEntry:
    said = parts.settings.get("version") or parts.settings.get("format") or "gemm"
    version = str(said).lower()
    if version != "gemm":
        raise parts.error(f"of AWQ's versions GEMM is read, this is {version!r}")
    return entry_of_words(parts, interleaved=True)


SCHEMES = (Scheme(SUFFIXES, _entry),)
