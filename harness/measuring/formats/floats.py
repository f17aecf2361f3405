"""Formats whose codes are floats or stand in a table: FP8, MXFP4, NF4."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from harness.measuring.formats.form import Form, Stored

BLOCK = 128
"""Rows and columns of an FP8 scale."""
E4M3_MOST = 448.0
GROUP = 32
"""Codes of an MXFP4 scale."""
BIAS = 127
"""What is taken off an exponent of 8 bits."""
NF4_BLOCK, NESTED_BLOCK = 64, 256
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
"""Floats of 4 bits: https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf."""
NORMAL = torch.tensor(
    [
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ]
)
"""NF4: https://arxiv.org/abs/2305.14314, appendix E."""


def spread(scales: Tensor, shape: torch.Size) -> Tensor:
    """A scale for each element of a matrix, of scales for blocks."""
    each = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
    return each[: shape[0], : shape[1]]


def encode_fp8(weight: Tensor) -> Stored:
    """Blocks at the ends are smaller."""
    rows, columns = weight.shape
    down, across = -(-rows // BLOCK), -(-columns // BLOCK)
    padded = torch.nn.functional.pad(
        weight.abs(), (0, across * BLOCK - columns, 0, down * BLOCK - rows)
    )
    scales = padded.view(down, BLOCK, across, BLOCK).amax((1, 3)) / E4M3_MOST
    codes = (weight / spread(scales, weight.shape)).to(torch.float8_e4m3fn)
    return {".weight": codes, ".weight_scale_inv": scales}


def decode_fp8(stored: Stored) -> Tensor:
    """Code times scale: https://huggingface.co/deepseek-ai/DeepSeek-V3, README_WEIGHTS.md."""
    codes = stored[".weight"]
    return codes.float() * spread(stored[".weight_scale_inv"], codes.shape)


def nearest(values: Tensor, table: Tensor) -> Tensor:
    """The places in a table of the numbers next to the values, as bytes."""
    return (values[..., None] - table).abs().argmin(-1).to(torch.uint8)


def encode_mxfp4(weight: Tensor) -> Stored:
    """Of experts [experts, in, out], groups of `in`; the first code of a byte is its low half."""
    groups = weight.mT.unflatten(-1, (-1, GROUP))
    exponents = (groups.abs().amax(-1) / 6).log2().ceil()
    codes = nearest(groups * torch.exp2(-exponents)[..., None], E2M1)
    blocks = codes[..., ::2] | codes[..., 1::2] << 4
    return {"_blocks": blocks, "_scales": (exponents + BIAS).to(torch.uint8)}


def decode_mxfp4(stored: Stored) -> Tensor:
    """Code times a power of two, which is exact; of the MX specification, see `E2M1`."""
    blocks, scales = stored["_blocks"], stored["_scales"]
    codes = torch.stack((blocks & 15, blocks >> 4), dim=-1).flatten(-2).long()
    values = E2M1[codes] * torch.exp2(scales.float() - BIAS)[..., None]
    return values.flatten(-2).mT


STATE = ".weight.quant_state.bitsandbytes__nf4"
LEVELS = torch.linspace(-1, 1, 256) ** 3
"""What codes of absmax stand for; the file brings it, whatever it is."""


def encode_nf4(weight: Tensor) -> Stored:
    """Double quantised: of blocks the absmax, less their mean, is codes as well."""
    blocks = weight.view(-1, NF4_BLOCK)
    absmax = blocks.abs().amax(-1)
    offset = float(absmax.mean())
    rest = (absmax - offset).split(NESTED_BLOCK)
    most = torch.stack([part.abs().amax() for part in rest])
    inner = torch.cat([nearest(part / m, LEVELS) for part, m in zip(rest, most, strict=True)])
    codes = nearest(blocks / absmax[:, None], NORMAL).view(-1)
    state = {
        "quant_type": "nf4",
        "blocksize": NF4_BLOCK,
        "dtype": "bfloat16",
        "shape": list(weight.shape),
        "nested_blocksize": NESTED_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": offset,
    }
    return {
        ".weight": (codes[::2] << 4 | codes[1::2])[:, None],
        ".weight.absmax": inner,
        ".weight.quant_map": NORMAL.clone(),
        ".weight.nested_absmax": most,
        ".weight.nested_quant_map": LEVELS.clone(),
        STATE: torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8),
    }


def decode_nf4(stored: Stored) -> Tensor:
    """Level times absmax, in the dtype that the weight had: https://arxiv.org/abs/2305.14314."""
    state = json.loads(bytes(stored[STATE].tolist()))
    inner = stored[".weight.absmax"].long()
    most = stored[".weight.nested_absmax"].repeat_interleave(state["nested_blocksize"])
    absmax = stored[".weight.nested_quant_map"][inner] * most[: len(inner)]
    absmax = absmax + torch.tensor(state["nested_offset"])
    packed = stored[".weight"].view(-1)
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).view(-1, state["blocksize"]).long()
    values = stored[".weight.quant_map"][codes] * absmax[:, None]
    dtype: torch.dtype = getattr(torch, state["dtype"])
    return values.view(state["shape"]).to(dtype)


FP8 = Form(
    settings={
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
    },
    encode=encode_fp8,
    decode=decode_fp8,
    suffixes=(".weight_scale_inv", ".weight"),
)
"""As deepseek-ai/DeepSeek-V3 and Qwen/Qwen3-30B-A3B-FP8."""
MXFP4 = Form(
    settings={
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    encode=encode_mxfp4,
    decode=decode_mxfp4,
    suffixes=("_blocks", "_scales"),
    keys=r"experts\.(gate_up|down)_proj$",
    target="",
)
"""As openai/gpt-oss-20b."""
NF4 = Form(
    settings={
        "_load_in_4bit": True,
        "_load_in_8bit": False,
        "bnb_4bit_compute_dtype": "bfloat16",
        "bnb_4bit_quant_storage": "uint8",
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": None,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": True,
        "load_in_8bit": False,
        "quant_method": "bitsandbytes",
    },
    encode=encode_nf4,
    decode=decode_nf4,
    suffixes=(
        STATE,
        ".weight",
        ".weight.absmax",
        ".weight.quant_map",
        ".weight.nested_absmax",
        ".weight.nested_quant_map",
    ),
)
"""As unsloth/Meta-Llama-3.1-8B-bnb-4bit."""
