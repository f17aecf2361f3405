from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rabbitllm import CheckpointError

Encoded = tuple[dict[str, torch.Tensor], torch.Tensor]
GROUP = 32
E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
KEY = "model.layers.1.mlp.up_proj.weight"


def settings(**weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes without sign [rows, columns] in 32 bits each, the first in the lowest."""
    many = 32 // bits
    padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % many)).long()
    words = (padded.unflatten(1, (-1, many)) << torch.arange(0, 32, bits)).sum(-1)
    return torch.where(words < 2**31, words, words - 2**32).int()


def scales_of(weight: torch.Tensor, width: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales in bfloat16 [rows, blocks], and for each element, as bfloat16 as well."""
    scales = (weight.unflatten(1, (-1, width)).abs().amax(-1) / most).bfloat16()
    return scales, scales.repeat_interleave(width, 1)


def integers(bits: int, width: int, asymmetric: bool = False) -> Callable[[torch.Tensor], Encoded]:
    def encode(weight: torch.Tensor) -> Encoded:
        half, columns = 2 ** (bits - 1), width or weight.shape[1]
        scales, each = scales_of(weight, columns, half - 1)
        codes = (weight / each.float()).round().clamp(-half, half - 1)
        stored = {
            ".weight_packed": packed(codes + half, bits),
            ".weight_scale": scales,
            ".weight_shape": torch.tensor(weight.shape),
        }
        if asymmetric:
            zeros = torch.randint(-8, 8, scales.shape)
            stored[".weight_zero_point"] = packed((zeros + 8).T, bits).T.contiguous()
            codes = codes - zeros.repeat_interleave(columns, 1)
        return stored, codes.bfloat16() * each

    return encode


def in_bytes(dtype: torch.dtype, form: str) -> Callable[[torch.Tensor], Encoded]:
    def encode(weight: torch.Tensor) -> Encoded:
        rows, columns = weight.shape
        shape = {"tensor": (1,), "channel": (rows, 1), "block": (rows // 16, columns // 32)}[form]
        scales = (torch.rand(shape) * 0.01 + 2e-3).bfloat16()
        each = scales.expand(rows, columns) if form != "block" else scales
        if form == "block":
            each = scales.repeat_interleave(16, 0).repeat_interleave(32, 1)
        codes = (weight / each.float()).clamp(-127, 127).to(dtype)
        return {".weight": codes, ".weight_scale": scales}, codes.bfloat16() * each

    return encode


def mxfp4(weight: torch.Tensor) -> Encoded:
    rows, columns = weight.shape
    codes = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    scales = torch.randint(118, 124, (rows, columns // GROUP), dtype=torch.uint8)
    each = (torch.tensor(2.0) ** (scales.float() - 127)).repeat_interleave(GROUP, 1)
    halves = codes.unflatten(1, (-1, 2))
    stored = {".weight_packed": halves[..., 0] | halves[..., 1] << 4, ".weight_scale": scales}
    return stored, torch.tensor(E2M1)[codes.long()] * each


INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}
FP8 = {"num_bits": 8, "type": "float"}
CASES = {
    "int4 in groups": (integers(4, GROUP), INT4),
    "int4 with zero points": (integers(4, GROUP, asymmetric=True), INT4 | {"symmetric": False}),
    "int4 a channel": (integers(4, 0), {"num_bits": 4, "type": "int", "strategy": "channel"}),
    "int8 packed": (integers(8, 0), {"num_bits": 8, "type": "int", "strategy": "channel"}),
    "int4, bits told by the shape": (integers(4, GROUP), {}),
    "int8, bits told by the shape": (integers(8, GROUP), {}),
    "int8 in bytes": (in_bytes(torch.int8, "channel"), {"num_bits": 8, "type": "int"}),
    "fp8 a channel": (in_bytes(torch.float8_e4m3fn, "channel"), FP8),
    "fp8 a tensor": (in_bytes(torch.float8_e4m3fn, "tensor"), FP8),
    "fp8 in blocks": (
        in_bytes(torch.float8_e4m3fn, "block"),
        FP8 | {"strategy": "block", "block_structure": [16, 32]},
    ),
    "mxfp4": (mxfp4, {"num_bits": 4, "type": "float", "group_size": GROUP}),
}


@pytest.mark.parametrize("case", CASES)
def test_each_layout(
    twins: Callable[..., Any],
    case: str,
    alike: Callable[..., bool],
) -> None:
    encode, weights = CASES[case]
    folders = twins(encode, settings(**weights))
    assert alike(folders)


@pytest.mark.parametrize("field", ["compression_config", "quantization_config"])
def test_experts_that_lie_apart_and_the_older_field(
    twins: Callable[..., Any],
    configure: Callable[..., None],
    field: str,
    alike: Callable[..., bool],
) -> None:
    fields = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    folders = twins(integers(4, GROUP), None, "qwen3_moe", head_dim=32, **fields)
    configure(folders.quantised, **{field: settings(**INT4)})
    assert alike(folders)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("joined", [True, False], ids=["experts", "linear"])
def test_fp8_that_is_put_together_is_rounded_once(
    twins: Callable[..., Any], alike: Callable[..., bool], joined: bool, dtype: str
) -> None:
    """As stock computes: experts in float32, other weights in the scale's dtype first."""

    def encode(weight: torch.Tensor) -> Encoded:
        stored, rounded = in_bytes(torch.float8_e4m3fn, "channel")(weight)
        product = stored[".weight"].float() * stored[".weight_scale"].float()
        assert not torch.equal(product, rounded.float())
        return stored, product if joined else rounded

    fields = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    pattern = r"experts\..*proj\.weight$" if joined else r"self_attn\..*proj\.weight$"
    said = settings(**FP8)
    kept = getattr(torch, dtype)
    folders = twins(encode, said, "qwen3_moe", pattern, kept, head_dim=32, **fields)
    assert alike(folders)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{KEY}_scale"), f"{KEY} in .* cannot be read: there is no {KEY}_scale"),
        (
            lambda t: t.update({f"{KEY}_g_idx": torch.zeros(64, dtype=torch.int32)}),
            f"{KEY} in .* cannot be read: columns in an order of their own .*g_idx",
        ),
        (
            lambda t: t.update({f"{KEY}_packed": torch.zeros(80, 8, dtype=torch.int32)}),
            f"{KEY} in .* cannot be read: the scales fit no blocks",
        ),
        (
            lambda t: t.update({f"{KEY}_packed": torch.zeros((), dtype=torch.int32)}),
            f"{KEY} in .* cannot be read: no such form is known",
        ),
        (
            lambda t: t.update(
                {
                    f"{KEY}_packed": torch.zeros(96, 32, dtype=torch.uint8),
                    f"{KEY}_scale": torch.zeros(96, 4).to(torch.float8_e4m3fn),
                }
            ),
            f"{KEY} in .* cannot be read: ",
        ),
    ],
)
def test_what_does_not_belong_together_is_named(
    twins: Callable[..., Any],
    logits: Callable[..., torch.Tensor],
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    folders = twins(integers(4, GROUP), settings(**INT4))
    folders.change(change)
    with pytest.raises(CheckpointError, match=message):
        logits(folders.quantised)


def test_other_bits_are_named(
    twins: Callable[..., Any], logits: Callable[..., torch.Tensor]
) -> None:
    folders = twins(integers(2, GROUP), settings(num_bits=2))
    with pytest.raises(CheckpointError, match="integers of 2 bits are not read, only of 4 and 8"):
        logits(folders.quantised)


def test_codes_without_scales_are_named(
    twins: Callable[..., Any], logits: Callable[..., torch.Tensor]
) -> None:
    folders = twins(in_bytes(torch.int8, "channel"), settings(num_bits=8))
    folders.change(lambda tensors: tensors.pop(f"{KEY}_scale"))
    with pytest.raises(CheckpointError, match=f"{KEY} in .* is quantised, and there is no scale"):
        logits(folders.quantised)
