"""What transformers writes of a model that bitsandbytes has quantised: NF4, FP4 and int8.

Of 4 bits, `weight` is the codes of the flat weight, and `quant_state` its shape and the rest in
JSON. With double quantisation `absmax` is codes as well. Values are rounded to the dtype that the
weight had when it was quantised.
"""

from collections.abc import Mapping
from typing import Any

import torch

from rabbitllm.checkpoint.codecs.codec import Codec, elements
from rabbitllm.checkpoint.codecs.nested import Nested
from rabbitllm.checkpoint.codecs.scaled import Scaled
from rabbitllm.checkpoint.plain_json import parse
from rabbitllm.checkpoint.quantised.parts import Parts, Scheme
from rabbitllm.checkpoint.tensors import TensorEntry

STATE = ".weight.quant_state.bitsandbytes__"
MOST_VALUES = 100
"""Of JSON in a `quant_state`."""
PART = 7.874015718698502e-3
"""1 / 127, of which the codes of int8 are so many: 127 is the most in a row (LLM.int8())."""
ROW_MAJOR = 0
"""`weight_format` of int8; the others were for GPUs, and are not in files."""
FORMAT = frozenset({".weight_format"})
NESTED = (".weight.nested_absmax", ".weight.nested_quant_map")


def _four_bits(kind: str) -> Scheme:
    def fold(parts: Parts) -> TensorEntry:
        state = _state(parts, STATE + kind)
        shape, block = [int(size) for size in state["shape"]], int(state["blocksize"])
        if elements(shape) % block:
            raise parts.error(f"its {elements(shape)} elements are no blocks of {block}")
        rounded = str(state["dtype"]).removeprefix("torch.")
        codec: Codec
        codec = codes = Scaled(
            parts.dtype_name, kind, block, 1, block, "float32", high_first=True, rounded=rounded
        )
        stored: tuple[str, ...] = (".weight", ".weight.absmax")
        if NESTED[0] in parts.tensors:
            codec = Nested(codes, int(state["nested_blocksize"]), float(state["nested_offset"]))
            stored += NESTED
        return parts.entry(codec, shape, *stored)

    beside = (".weight.quant_map", *NESTED)
    return Scheme(
        (STATE + kind, ".weight", ".weight.absmax", *beside),
        fold,
        optional=frozenset(beside),
        telling=frozenset({STATE + kind}),
    )


def _state(parts: Parts, suffix: str) -> Mapping[str, Any]:
    text = parts.read(suffix).view(torch.uint8).numpy().tobytes()
    state: Mapping[str, Any] = parse(text, MOST_VALUES)
    return state


def _int8(parts: Parts) -> TensorEntry:
    codes = parts.tensors[".weight"]
    if ".weight_format" in parts.tensors and (found := int(parts.read(".weight_format"))):
        raise parts.error(f"of int8, rows are read ({ROW_MAJOR}), this is the format {found}")
    columns = codes.shape[1]
    codec = Scaled(parts.dtype_name, "int8", columns, 1, columns, "float32", factor=PART)
    return parts.entry(codec, codes.shape, ".weight", ".SCB")


SCHEMES = (
    _four_bits("nf4"),
    _four_bits("fp4"),
    Scheme((".SCB", ".weight", *FORMAT), _int8, optional=FORMAT, telling=FORMAT),
)
