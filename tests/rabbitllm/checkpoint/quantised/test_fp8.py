from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rabbitllm import CheckpointError

LINEAR = r"self_attn.*proj\.weight$"
BLOCKS = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [32, 16],
}
EIGHTH_TO_EIGHT = (124, 131)


def grid(weight: torch.Tensor, form: str) -> tuple[int, int]:
    rows, columns = weight.shape
    return {"blocks": (32, 16), "channel": (1, columns), "tensor": (rows, columns)}[form]


def encoded(
    form: str, name: str = ".weight_scale_inv", dtype: torch.dtype = torch.float8_e4m3fn
) -> Callable[[torch.Tensor], Any]:
    """Codes with scales for so much; `decoded` is their product in float32."""

    def encode(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rows, columns = weight.shape
        high, wide = grid(weight, form)
        down, across = -(-rows // high), -(-columns // wide)
        scales = torch.rand(down, across) * 0.01 + 1e-3
        each = scales.repeat_interleave(high, 0).repeat_interleave(wide, 1)[:rows, :columns]
        codes = (weight / each).to(dtype)
        stored = {".weight": codes, name: scales[0, 0] if form == "tensor" else scales}
        return stored, codes.float() * each

    return encode


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("form", ["blocks", "channel", "tensor"])
def test_scales_for_blocks_channels_and_tensors(
    twins: Callable[..., Any],
    stock: Callable[..., PreTrainedModel],
    logits: Callable[..., torch.Tensor],
    prompt: torch.Tensor,
    form: str,
    dtype: str,
) -> None:
    settings = BLOCKS if form == "blocks" else {"quant_method": "fp8"}
    folders = twins(encoded(form), settings, dtype=getattr(torch, dtype))
    expected = stock(folders.plain)(prompt).logits
    assert torch.equal(logits(folders.quantised, dtype=dtype), expected)


def test_experts_that_lie_apart(
    twins: Callable[..., Any],
    alike: Callable[..., bool],
) -> None:
    fields = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    folders = twins(encoded("blocks"), BLOCKS, "qwen3_moe", head_dim=32, **fields)
    assert alike(folders)


def test_what_computes_in_another_dtype_is_cast_where_it_lies(
    twins: Callable[..., Any],
    alike: Callable[..., bool],
) -> None:
    """As the routers of DeepSeek-V3, which lie in bfloat16 and compute in float32."""
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    folders = twins(encoded("blocks"), BLOCKS, "deepseek_v3", **heads)
    folders.change(lambda tensors: tensors.update(_in_float32(tensors, "norm.weight")))
    before = stores()
    assert alike(folders)
    assert stores() == before


def stores() -> set[Path]:
    return set(Path(os.environ["RABBITLLM_CACHE"]).rglob("*.safetensors"))


def _in_float32(tensors: dict[str, torch.Tensor], name: str) -> dict[str, torch.Tensor]:
    return {key: tensor.float() for key, tensor in tensors.items() if key.endswith(name)}


def test_what_stock_reads_is_the_same(
    twins: Callable[..., Any],
    stock: Callable[..., PreTrainedModel],
    logits: Callable[..., torch.Tensor],
    prompt: torch.Tensor,
) -> None:
    from transformers import FineGrainedFP8Config

    folders = twins(encoded("blocks"), BLOCKS)
    config = FineGrainedFP8Config(weight_block_size=(32, 16), dequantize=True)
    reference = stock(folders.quantised, quantization_config=config, dtype=torch.bfloat16)
    assert torch.equal(logits(folders.quantised), reference(prompt).logits)


def test_blocks_that_are_smaller_at_the_ends(
    twins: Callable[..., Any],
    alike: Callable[..., bool],
) -> None:
    """As in DeepSeek-V3, where 576 rows have 5 blocks of 128."""
    folders = twins(encoded("blocks"), BLOCKS, hidden_size=72, head_dim=18, intermediate_size=88)
    assert alike(folders)


def test_scales_that_are_exponents(
    twins: Callable[..., Any],
    alike: Callable[..., bool],
) -> None:
    def encode(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rows, columns = weight.shape
        scales = torch.randint(*EIGHTH_TO_EIGHT, (rows // 32, columns // 16), dtype=torch.uint8)
        powers = torch.tensor(2.0) ** (scales.float() - 127)
        each = powers.repeat_interleave(32, 0).repeat_interleave(16, 1)
        codes = (weight / each).to(torch.float8_e4m3fn)
        e8m0 = scales.view(torch.float8_e8m0fnu)
        return {".weight": codes, ".weight_scale_inv": e8m0}, codes.float() * each

    folders = twins(encode, BLOCKS | {"scale_fmt": "ue8m0"})
    assert alike(folders)


def test_what_fbgemm_writes(
    twins: Callable[..., Any],
    alike: Callable[..., bool],
) -> None:
    folders = twins(encoded("channel", ".weight_scale"), {"quant_method": "fbgemm_fp8"})
    folders.change(lambda tensors: tensors.update(_input_scales(tensors)))
    assert alike(folders)


def _input_scales(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    stems = [key.removesuffix("_scale") for key in tensors if key.endswith("_scale")]
    return {stem.removesuffix("weight") + "input_scale_ub": torch.ones(1) for stem in stems}


def test_the_config_may_lie_in_that_of_the_text_part(
    composite: Path,
    rewrite: Callable[..., None],
    configure: Callable[..., None],
    stock: Callable[..., PreTrainedModel],
    logits: Callable[..., torch.Tensor],
    prompt: torch.Tensor,
) -> None:
    def apply(tensors: dict[str, torch.Tensor], quantise: bool) -> None:
        for key in [key for key in tensors if re.search(LINEAR, key) and "language" in key]:
            stored, decoded = encoded("blocks")(tensors[key])
            tensors[key] = decoded
            if quantise:
                stem = key.removesuffix(".weight")
                tensors |= {stem + suffix: tensor for suffix, tensor in stored.items()}

    plain = Path(shutil.copytree(composite, composite.parent / "plain"))
    for folder, quantise in ((composite, True), (plain, False)):
        torch.manual_seed(0)
        rewrite(folder, partial(apply, quantise=quantise))
    text = json.loads((composite / "config.json").read_text())["text_config"]
    configure(composite, text_config=text | {"quantization_config": BLOCKS})
    assert torch.equal(logits(composite), stock(plain)(prompt).logits)


PROJ = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(PROJ), f"{PROJ} in .* cannot be read: there is no {PROJ} "),
        (
            lambda t: t.update({PROJ + "_scale_inv": torch.ones(7, 4)}),
            rf"^{PROJ} in \S* cannot be read: the scales fit no blocks of the weight .*\[7, 4\]",
        ),
        (
            lambda t: t.update({PROJ + "_scale_inv": torch.ones(2, 3, 4)}),
            f"{PROJ} in .* cannot be read: ",
        ),
        (
            lambda t: t.update({PROJ + "_scale_inv": torch.ones(3, 4).double()}),
            f"{PROJ} in .* cannot be read: scales in torch.float64 are not known",
        ),
        (
            lambda t: t.update({PROJ: torch.ones(96, 64)}),
            f"{PROJ} in .* cannot be read: torch.float32 is no FP8",
        ),
        (lambda t: t.update({PROJ + "_scale_inv": torch.ones(0, 4)}), "the scales fit no blocks"),
    ],
)
def test_what_does_not_belong_together_is_named(
    twins: Callable[..., Any],
    logits: Callable[..., torch.Tensor],
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    folders = twins(encoded("blocks"), BLOCKS)
    folders.change(change)
    with pytest.raises(CheckpointError, match=message):
        logits(folders.quantised)


def test_a_weight_without_its_scale_is_named(
    twins: Callable[..., Any], logits: Callable[..., torch.Tensor]
) -> None:
    folders = twins(encoded("blocks"), BLOCKS)
    folders.change(lambda tensors: tensors.pop(PROJ + "_scale_inv"))
    with pytest.raises(CheckpointError, match=PROJ):
        logits(folders.quantised)
