"""FP8 as DeepSeek and Qwen publish it: e4m3 with a scale for a block, a channel or a tensor.

The scale stands beside the weight as `weight_scale_inv`, and is multiplied with, its name
notwithstanding (https://huggingface.co/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md). In some
checkpoints it is an exponent alone (ue8m0), and experts are floats of 4 bits.
"""

import torch

from rabbitllm.checkpoint.codecs.scaled import Scaled
from rabbitllm.checkpoint.quantised.grids import block_of, scale_name
from rabbitllm.checkpoint.quantised.parts import Parts, Scheme
from rabbitllm.checkpoint.tensors import TensorEntry

KINDS = {
    torch.float8_e4m3fn: ("e4m3", 1),
    torch.float8_e5m2: ("e5m2", 1),
    torch.int8: ("e2m1", 2),
}
"""dtype on disk -> what codes are, and how many are in a byte."""


def _entry(scale: str) -> Scheme:
    def fold(parts: Parts) -> TensorEntry:
        codes, scales = parts.tensors[""], parts.tensors[scale]
        if codes.dtype not in KINDS or len(codes.shape) < 2:
            raise parts.error(f"{codes.dtype} is no FP8")
        kind, in_byte = KINDS[codes.dtype]
        shape = (*codes.shape[:-1], codes.shape[-1] * in_byte)
        # As stock: where a grid divides the matrix evenly, so it does, whatever the config says. It
        # refuses the others, whose last blocks are smaller, as in DeepSeek-V3's kv_a_proj.
        usual = parts.settings.get("weight_block_size")
        rows, width = block_of(parts, shape, scales, usual, prefer_even=True)
        if len(shape) > 2 and shape[-2] % rows:
            raise parts.error("matrices of no whole blocks lie one behind the other")
        codec = Scaled(parts.dtype_name, kind, shape[-1], rows, width, scale_name(parts, scale))
        return parts.entry(codec, shape, "", scale)

    return Scheme((scale, ""), fold, target="")


SCHEMES = (_entry("_scale_inv"), _entry("_scale"))
UNNEEDED = (".input_scale", ".activation_scale", ".input_scale_ub")
"""Of tensors that quantise activations, which are not quantised here."""
