"""Formats whose codes are integers of 4 bits, eight in a word: AWQ, GPTQ, compressed-tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.measuring.formats.form import Form, Stored

GROUP = 128
MOST = 15
HALF = 8
IN_WORD = 8
INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns each place of AWQ's words holds, the lowest bits first."""
PLAIN = tuple(range(IN_WORD))
SEED = 20


def pack(codes: Tensor, order: Sequence[int] = PLAIN) -> Tensor:
    """Codes [..., n] -> words in int32 [..., n / 8]."""
    apart = codes.long().unflatten(-1, (-1, IN_WORD))[..., list(order)]
    words = (apart << torch.arange(0, 32, 4)).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).int()


def unpack(words: Tensor, order: Sequence[int] = PLAIN) -> Tensor:
    """The inverse of `pack`, in int64."""
    apart = words.long()[..., None] >> torch.arange(0, 32, 4) & MOST
    inverse = sorted(range(IN_WORD), key=lambda place: order[place])
    return apart[..., inverse].flatten(-2)


def quantised(weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [in, out], zero points and scales [groups, out] of a weight [out, in].

    Args:
        weight: in float32.
        index: the group of each column [in].
    """
    columns = weight.T
    parts = [columns[index == group] for group in range(int(index.max()) + 1)]
    low = torch.stack([part.amin(0) for part in parts])
    high = torch.stack([part.amax(0) for part in parts])
    scales = ((high - low) / MOST).half()
    zeros = (-low / scales.float()).round().clamp(1, MOST).long()
    codes = (columns / scales[index].float()).round() + zeros[index]
    return codes.clamp(0, MOST).long(), zeros, scales


def encode_awq(weight: Tensor) -> Stored:
    """Groups of neighbours."""
    index = torch.arange(weight.shape[1]) // GROUP
    codes, zeros, scales = quantised(weight, index)
    words, points = pack(codes, INTERLEAVED), pack(zeros, INTERLEAVED)
    return {".qweight": words, ".qzeros": points, ".scales": scales}


def decode_awq(stored: Stored) -> Tensor:
    """(code - zero) * scale, in float16: https://github.com/casper-hansen/AutoAWQ, gemm."""
    codes = unpack(stored[".qweight"], INTERLEAVED)
    zeros = unpack(stored[".qzeros"], INTERLEAVED)
    index = torch.arange(len(codes)) // GROUP
    return ((codes - zeros[index]) * stored[".scales"][index]).T


def encode_gptq(weight: Tensor) -> Stored:
    """By importance (`desc_act`): which columns are of a group, `g_idx` says."""
    generator = torch.Generator().manual_seed(SEED)
    index = (torch.arange(weight.shape[1]) // GROUP)[
        torch.randperm(weight.shape[1], generator=generator)
    ]
    codes, zeros, scales = quantised(weight, index)
    return {
        ".qweight": pack(codes.T).T,
        ".qzeros": pack(zeros - 1),
        ".scales": scales,
        ".g_idx": index.int(),
    }


def decode_gptq(stored: Stored) -> Tensor:
    """(code - zero - 1) * scale, in float16: https://github.com/AutoGPTQ/AutoGPTQ."""
    codes, index = unpack(stored[".qweight"].T).T, stored[".g_idx"].long()
    zeros = unpack(stored[".qzeros"]) + 1
    return ((codes - zeros[index]) * stored[".scales"][index]).T


def encode_compressed(weight: Tensor) -> Stored:
    """Symmetric groups, codes from -8, stored with 8 added."""
    groups = weight.unflatten(1, (-1, GROUP))
    scales = (groups.abs().amax(-1) / (HALF - 0.5)).bfloat16()
    codes = (groups / scales.float()[..., None]).round().clamp(-HALF, HALF - 1).flatten(1)
    return {
        ".weight_packed": pack(codes + HALF),
        ".weight_scale": scales,
        ".weight_shape": torch.tensor(weight.shape),
    }


def decode_compressed(stored: Stored) -> Tensor:
    """Code * scale, in the scale's dtype: https://github.com/vllm-project/compressed-tensors."""
    scales = stored[".weight_scale"]
    codes = unpack(stored[".weight_packed"]) - HALF
    decoded: Tensor = codes.to(scales.dtype) * scales.repeat_interleave(GROUP, 1)
    return decoded.view(stored[".weight_shape"].tolist())


GROUPS: dict[str, Any] = {
    "actorder": None,
    "block_structure": None,
    "dynamic": False,
    "group_size": GROUP,
    "num_bits": 4,
    "observer": "minmax",
    "observer_kwargs": {},
    "strategy": "group",
    "symmetric": True,
    "type": "int",
}
AWQ = Form(
    settings={
        "bits": 4,
        "group_size": GROUP,
        "modules_to_not_convert": None,
        "quant_method": "awq",
        "version": "gemm",
        "zero_point": True,
    },
    encode=encode_awq,
    decode=decode_awq,
    suffixes=(".qweight", ".qzeros", ".scales"),
)
"""As Qwen/Qwen2.5-7B-Instruct-AWQ and TheBloke's."""
GPTQ = Form(
    settings={
        "bits": 4,
        "damp_percent": 0.1,
        "desc_act": True,
        "group_size": GROUP,
        "model_file_base_name": "model",
        "model_name_or_path": None,
        "quant_method": "gptq",
        "static_groups": False,
        "sym": True,
        "true_sequential": True,
    },
    encode=encode_gptq,
    decode=decode_gptq,
    suffixes=(".qweight", ".qzeros", ".scales", ".g_idx"),
)
"""As TheBloke's with act-order."""
COMPRESSED_TENSORS = Form(
    settings={
        "config_groups": {
            "group_0": {
                "input_activations": None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": GROUPS,
            }
        },
        "format": "pack-quantized",
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    },
    encode=encode_compressed,
    decode=decode_compressed,
    suffixes=(".weight_packed", ".weight_scale", ".weight_shape"),
)
"""As RedHatAI's w4a16."""
