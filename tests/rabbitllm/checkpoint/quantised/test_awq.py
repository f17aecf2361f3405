from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rabbitllm import CheckpointError

GROUP = 32
STEM = "model.layers.1.mlp.up_proj"
SETTINGS = {
    "quant_method": "awq",
    "bits": 4,
    "group_size": GROUP,
    "zero_point": True,
    "version": "gemm",
}
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def words(codes: torch.Tensor) -> torch.Tensor:
    """[.., n] -> int32 [.., n / 8]."""
    packed = torch.zeros(*codes.shape[:-1], codes.shape[-1] // 8, dtype=torch.int64)
    for place, column in enumerate(ORDER):
        packed |= codes[..., column::8] << 4 * place
    return torch.where(packed < 2**31, packed, packed - 2**32).int()


def encode(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    rows, columns = weight.shape
    scales = (torch.rand(columns // GROUP, rows) * 0.02 + 1e-5).half()
    zeros = torch.randint(0, 16, scales.shape)
    codes = torch.randint(0, 16, (columns, rows))
    index = torch.arange(columns) // GROUP
    stored = {".qweight": words(codes), ".qzeros": words(zeros), ".scales": scales}
    return stored, ((codes - zeros[index]) * scales[index]).T


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_what_autoawq_writes(
    twins: Callable[..., Any],
    model_type: str,
    dtype: str,
    alike: Callable[..., bool],
) -> None:
    folders = twins(encode, SETTINGS, model_type, dtype=getattr(torch, dtype))
    assert alike(folders)


def test_experts_that_lie_apart(
    twins: Callable[..., Any],
    alike: Callable[..., bool],
) -> None:
    fields = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
    folders = twins(encode, SETTINGS, "qwen3_moe", head_dim=32, **fields)
    assert alike(folders)


def test_the_older_file(
    twins: Callable[..., Any],
    alike: Callable[..., bool],
) -> None:
    folders = twins(encode, None)
    settings = {"w_bit": 4, "q_group_size": GROUP, "zero_point": True, "version": "GEMM"}
    (folders.quantised / "quant_config.json").write_text(json.dumps(settings))
    assert alike(folders)


def test_a_whole_weight_is_of_many_blocks(
    twins: Callable[..., Any],
    alike: Callable[..., bool],
) -> None:
    folders = twins(encode, SETTINGS, intermediate_size=6144)
    assert alike(folders)


@pytest.mark.parametrize("version", ["gemv", "marlin"])
def test_another_version_is_named(
    twins: Callable[..., Any], logits: Callable[..., torch.Tensor], version: str
) -> None:
    folders = twins(encode, SETTINGS | {"version": version})
    message = f"cannot be read: of AWQ's versions GEMM is read, this is '{version}'"
    with pytest.raises(CheckpointError, match=message):
        logits(folders.quantised)


def test_what_does_not_belong_together_is_named(
    twins: Callable[..., Any], logits: Callable[..., torch.Tensor]
) -> None:
    folders = twins(encode, SETTINGS)
    folders.change(lambda t: t.update({f"{STEM}.qzeros": torch.zeros(3, 12, dtype=torch.int32)}))
    with pytest.raises(CheckpointError, match=f"^{STEM}.weight in .* cannot be read: "):
        logits(folders.quantised)
