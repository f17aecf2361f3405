"""A checkpoint again in another number format, in the layout that such ones are published in.

Values are rounded to the nearest, which is quick and good enough to be timed.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rabbitllm.checkpoint.codecs.values import E2M1, NF4
from rabbitllm.checkpoint.index import SAFETENSORS

LINEAR = re.compile(r"\.layers\..*_proj\.weight$")
"""The weights that are quantised: as a rule embeddings and heads are not."""
Tensors = dict[str, torch.Tensor]
GROUP, BLOCK, NESTED = 128, 64, 256
WORD = 32 // 4
"""Codes in 32 bits."""


@dataclass(frozen=True)
class Format:
    """A number format.

    Attributes:
        write: of a weight [out, in]: the suffixes that stand behind the module's name -> tensors.
        settings: `quantization_config` of the checkpoint.
    """

    write: Callable[[torch.Tensor], Tensors]
    settings: dict[str, Any] = field(default_factory=dict)


def fp8(weight: torch.Tensor) -> Tensors:
    """e4m3 with a scale for 128 x 128."""
    rows, columns = weight.shape
    down, across = -(-rows // 128), -(-columns // 128)
    whole = weight.new_zeros(128 * down, 128 * across, dtype=torch.float32)
    whole[:rows, :columns] = weight
    blocks = whole.view(down, 128, across, 128)
    scales = blocks.abs().amax((1, 3)).clamp(min=1e-12) / 448
    codes = (blocks / scales[:, None, :, None]).view(whole.shape)[:rows, :columns]
    return {".weight": codes.to(torch.float8_e4m3fn), ".weight_scale_inv": scales}


def mxfp4(weight: torch.Tensor) -> Tensors:
    """Floats of 4 bits with an exponent for 32, as compressed-tensors packs them."""
    groups = weight.float().view(len(weight), -1, 32)
    powers = (groups.abs().amax(-1, keepdim=True).clamp(min=1e-30) / 6).log2().ceil()
    nearest = _nearest(groups.abs() / powers.exp2(), torch.tensor(E2M1))
    codes = nearest | (groups < 0).to(torch.uint8) << 3
    packed = _bytes(codes.view(len(weight), -1))
    return {".weight_packed": packed, ".weight_scale": (powers[..., 0] + 127).to(torch.uint8)}


def int4(weight: torch.Tensor) -> Tensors:
    """Integers with a scale for 128, as compressed-tensors packs them."""
    codes, scales = _integers(weight, torch.bfloat16)
    return {
        ".weight_packed": _words(codes),
        ".weight_scale": scales,
        ".weight_shape": torch.tensor(weight.shape),
    }


def gptq(weight: torch.Tensor) -> Tensors:
    """Integers of the transposed weight, in words along its columns."""
    codes, scales = _integers(weight, torch.float16)
    groups = torch.arange(weight.shape[1], dtype=torch.int32) // GROUP
    return {
        ".qweight": _words(codes).t(),
        ".qzeros": _words(torch.full_like(scales.t(), 7, dtype=torch.int64)),
        ".scales": scales.t(),
        ".g_idx": groups,
    }


def awq(weight: torch.Tensor) -> Tensors:
    """Integers of the transposed weight, in words along its rows, neighbours apart."""
    codes, scales = _integers(weight, torch.float16)
    return {
        ".qweight": _words(_interleaved(codes.t())),
        ".qzeros": _words(torch.full_like(scales.t(), 8, dtype=torch.int64)),
        ".scales": scales.t(),
    }


def nf4(weight: torch.Tensor) -> Tensors:
    """NF4 whose scales are quantised, as bitsandbytes saves it."""
    blocks = weight.float().view(-1, BLOCK)
    scales = blocks.abs().amax(1)
    offset = scales.mean()
    some = torch.nn.functional.pad(scales - offset, (0, -len(scales) % NESTED)).view(-1, NESTED)
    nested = some.abs().amax(1).clamp(min=1e-12)
    levels = torch.linspace(-1, 1, 256, device=weight.device)
    coded = _nearest(some / nested[:, None], levels).view(-1)[: len(scales)]
    codes = _nearest(blocks / scales.clamp(min=1e-12)[:, None], torch.tensor(NF4)).view(-1, 2)
    state = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": "bfloat16"}
    state |= {"shape": list(weight.shape), "nested_blocksize": NESTED, "nested_dtype": "float32"}
    text = json.dumps(state | {"nested_offset": float(offset)}).encode()
    return {
        ".weight": codes[:, :1] << 4 | codes[:, 1:],
        ".weight.absmax": coded,
        ".weight.quant_map": torch.tensor(NF4),
        ".weight.nested_absmax": nested,
        ".weight.nested_quant_map": levels,
        ".weight.quant_state.bitsandbytes__nf4": torch.frombuffer(
            bytearray(text), dtype=torch.uint8
        ),
    }


def _compressed(packing: str, **weights: Any) -> dict[str, Any]:
    """What compressed-tensors says of its checkpoints."""
    one = {"targets": ["Linear"], "format": packing, "weights": {"symmetric": True} | weights}
    return {
        "quant_method": "compressed-tensors",
        "format": packing,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": one},
    }


FORMATS = {
    "bf16": Format(lambda weight: {".weight": weight}),
    "fp8": Format(fp8, {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}),
    "mxfp4": Format(
        mxfp4,
        _compressed(
            "mxfp4-pack-quantized", num_bits=4, type="float", strategy="group", group_size=32
        ),
    ),
    "int4": Format(
        int4,
        _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=GROUP),
    ),
    "gptq": Format(gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP}),
    "awq": Format(
        awq,
        {
            "quant_method": "awq",
            "bits": 4,
            "group_size": GROUP,
            "zero_point": True,
            "version": "gemm",
        },
    ),
    "nf4": Format(
        nf4,
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    ),
}


def write_format(source: Path, folder: Path, name: str, device: str) -> Path:
    """Writes a checkpoint in another format, a shard at a time; returns `folder`.

    Args:
        source: a checkpoint in bfloat16, in shards with an index.
        folder: made; a complete checkpoint there is kept.
        name: of the format, a key of `FORMATS`.
        device: where to compute: a GPU is quicker.
    """
    if (folder / SAFETENSORS.index).is_file():
        return folder
    folder.mkdir(parents=True)
    made = FORMATS[name]
    index = json.loads((source / SAFETENSORS.index).read_text())["weight_map"]
    weight_map: dict[str, str] = {}
    for shard in sorted(set(index.values())):
        tensors: Tensors = {}
        for key, tensor in load_file(source / shard, device=device).items():
            if LINEAR.search(key):
                stem = key.removesuffix(".weight")
                tensors |= {stem + suffix: part for suffix, part in made.write(tensor).items()}
            else:
                tensors[key] = tensor
        on_host = {key: tensor.cpu().contiguous() for key, tensor in tensors.items()}
        save_file(on_host, folder / shard, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, shard)
    shutil.copy(source / "config.json", folder)
    if made.settings:
        fields = json.loads((folder / "config.json").read_text())
        fields["quantization_config"] = made.settings
        (folder / "config.json").write_text(json.dumps(fields))
    (folder / SAFETENSORS.index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def _integers(weight: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes 0 to 15 [out, in], of which 8 is zero, and scales [out, in / 128]."""
    groups = weight.float().view(len(weight), -1, GROUP)
    scales = (groups.abs().amax(-1) / 7).clamp(min=1e-6).to(dtype)
    codes = (groups / scales.float()[..., None]).round().clamp(-8, 7) + 8
    return codes.view(weight.shape).long(), scales


def _nearest(values: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """The places of the nearest of rising levels: uint8."""
    between = (levels[1:] + levels[:-1]).to(values.device) / 2
    return torch.bucketize(values.contiguous(), between).to(torch.uint8)


def _bytes(codes: torch.Tensor) -> torch.Tensor:
    """Two codes of a row in a byte, the first in its lower half."""
    return codes[:, ::2] | codes[:, 1::2] << 4


def _words(codes: torch.Tensor) -> torch.Tensor:
    """Eight codes of a row in an int32, the first in its lowest bits."""
    shifts = torch.arange(0, 32, 4, device=codes.device)
    words = (codes.reshape(len(codes), -1, WORD) << shifts).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).int()


def _interleaved(codes: torch.Tensor) -> torch.Tensor:
    """Neighbours of a row in the order of AWQ's words."""
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7], device=codes.device)
    return codes.reshape(len(codes), -1, WORD)[..., order].reshape(codes.shape)
