from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rabbitllm import CheckpointError

Encode = Callable[[torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]
GROUP = 32
STEM = "model.layers.1.mlp.up_proj"
SETTINGS = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}
V2 = {"checkpoint_format": "gptq_v2"}


def words(codes: torch.Tensor, bits: int, dim: int) -> torch.Tensor:
    """Codes [.., ..] in 32 bits each along a dimension, the first in the lowest."""
    apart = codes.long().movedim(dim, -1).unflatten(-1, (-1, 32 // bits))
    packed = (apart << torch.arange(0, 32, bits)).sum(-1).movedim(-1, dim)
    return torch.where(packed < 2**31, packed, packed - 2**32).int().contiguous()


def encoded(bits: int, minus: int = 1, group: int = GROUP, order: str = "named") -> Encode:
    """`order`: of groups: "none" has no g_idx, "named" that of neighbours, "mixed" another."""

    def encode(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rows, columns = weight.shape
        width = group if group > 0 else columns
        groups = -(-columns // width)
        index = torch.arange(columns) // width
        if order == "mixed":
            index = index[torch.randperm(columns)]
        scales = (torch.rand(groups, rows) * 0.02 + 1e-5).half()
        zeros = torch.randint(minus, 2**bits, (groups, rows))
        codes = torch.randint(0, 2**bits, (columns, rows))
        stored = {
            ".qweight": words(codes, bits, 0),
            ".qzeros": words(zeros - minus, bits, 1),
            ".scales": scales,
        }
        if order != "none":
            stored[".g_idx"] = index.int()
        return stored, (scales[index] * (codes - zeros[index])).T

    return encode


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("order", ["none", "named", "mixed"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_of_each_width(
    twins: Callable[..., Any],
    bits: int,
    order: str,
    dtype: str,
    alike: Callable[..., bool],
) -> None:
    folders = twins(
        encoded(bits, order=order), SETTINGS | {"bits": bits}, dtype=getattr(torch, dtype)
    )
    assert alike(folders)


@pytest.mark.parametrize(
    ("encode", "settings"),
    [
        (encoded(4, minus=0), V2),
        (encoded(4, group=-1), {"group_size": -1}),
        (encoded(4, group=24), {"group_size": 24}),
        (encoded(4), {"group_size": None}),
        (encoded(4), {"checkpoint_format": "gptq", "sym": True}),
    ],
)
def test_other_zero_points_and_groups(
    twins: Callable[..., Any],
    encode: Encode,
    settings: dict[str, Any],
    alike: Callable[..., bool],
) -> None:
    folders = twins(encode, SETTINGS | settings)
    assert alike(folders)


def test_bias_and_the_older_file(
    twins: Callable[..., Any],
    alike: Callable[..., bool],
) -> None:
    folders = twins(encoded(4), None, "qwen2")
    settings = {name: value for name, value in SETTINGS.items() if name != "quant_method"}
    (folders.quantised / "quantize_config.json").write_text(json.dumps(settings))
    assert alike(folders)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{STEM}.scales"), f"there is no {STEM}.scales"),
        (lambda t: t.pop(f"{STEM}.qzeros"), f"there is no {STEM}.qzeros"),
        (
            lambda t: t.update({f"{STEM}.qzeros": torch.zeros(2, 9, dtype=torch.int32)}),
            "integers of 3 bits are not read",
        ),
        (
            lambda t: t.update({f"{STEM}.scales": torch.zeros(5, 96).half()}),
            "the scales fit no groups of the weight",
        ),
        (
            lambda t: t.update({f"{STEM}.g_idx": torch.zeros(7, dtype=torch.int32)}),
            "they do not belong together",
        ),
        (
            lambda t: t.update({f"{STEM}.qweight": torch.zeros(9, dtype=torch.int32)}),
            "they do not belong together",
        ),
    ],
)
def test_what_does_not_belong_together_is_named(
    twins: Callable[..., Any],
    logits: Callable[..., torch.Tensor],
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    folders = twins(encoded(4), SETTINGS)
    folders.change(change)
    with pytest.raises(CheckpointError, match=rf"^{STEM}.weight in \S* cannot be read: {message}"):
        logits(folders.quantised)


def test_a_group_that_is_none_is_named(
    twins: Callable[..., Any], logits: Callable[..., torch.Tensor]
) -> None:
    folders = twins(encoded(4, order="mixed"), SETTINGS)
    folders.change(lambda tensors: tensors[f"{STEM}.g_idx"].add_(2))
    with pytest.raises(CheckpointError, match="columns are of groups that are not among the 2"):
        logits(folders.quantised)


def test_another_format_is_named(
    twins: Callable[..., Any], logits: Callable[..., torch.Tensor]
) -> None:
    folders = twins(encoded(4), SETTINGS | {"checkpoint_format": "marlin"})
    message = "of GPTQ's formats gptq, gptq_v2 are read, this is 'marlin'"
    with pytest.raises(CheckpointError, match=message):
        logits(folders.quantised)
