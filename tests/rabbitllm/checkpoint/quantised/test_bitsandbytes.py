"""Formulas, to which bitsandbytes 0.50.2 gives the same bits; tables are those of its kernels."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch

from rabbitllm import CheckpointError
from rabbitllm.checkpoint.codecs.values import NF4

Encode = Callable[[torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]
BLOCK = 64
STEM = "model.layers.1.mlp.up_proj"
STATE = f"{STEM}.weight.quant_state.bitsandbytes__nf4"
FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True}
FP4 = [0, 0.0052083333, 0.6666666667, 1, 0.3333333333, 0.5, 0.1666666667, 0.25]
TABLES = {"nf4": torch.tensor(NF4), "fp4": torch.tensor(FP4 + [0.0 - value for value in FP4])}


def text(**fields: Any) -> torch.Tensor:
    return torch.tensor(list(json.dumps(fields).encode()), dtype=torch.uint8)


def four_bits(
    kind: str = "nf4", nested: bool = True, saved: str = "bfloat16", block: int = BLOCK
) -> Encode:
    def encode(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        codes = torch.randint(0, 16, (weight.numel(),), dtype=torch.uint8)
        count = weight.numel() // block
        state: dict[str, Any] = {"quant_type": kind, "blocksize": block, "dtype": saved}
        state |= {"shape": list(weight.shape)}
        absmax = torch.rand(count) * 0.1 + 0.05
        stored = {".weight": (codes[::2] << 4 | codes[1::2])[:, None], ".weight.absmax": absmax}
        if nested:
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.09731}
            levels, most = torch.linspace(-1, 1, 256) ** 3, torch.rand(-(-count // 256)) * 0.05
            stored[".weight.absmax"] = torch.randint(0, 256, (count,), dtype=torch.uint8)
            stored |= {".weight.nested_absmax": most, ".weight.nested_quant_map": levels}
            absmax = levels[stored[".weight.absmax"].long()]
            absmax = absmax * most.repeat_interleave(256)[:count] + torch.tensor(0.09731)
        stored[".weight.quant_map"] = TABLES[kind].clone()
        stored[f".weight.quant_state.bitsandbytes__{kind}"] = text(**state)
        values = TABLES[kind][codes.long()].view(count, -1) * absmax[:, None]
        return stored, values.view(weight.shape).to(getattr(torch, saved))

    return encode


def eight_bits(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    codes = torch.randint(-127, 128, weight.shape, dtype=torch.int8)
    most = weight.abs().amax(1)
    stored = {".weight": codes, ".SCB": most, ".weight_format": torch.tensor(0, dtype=torch.uint8)}
    return stored, codes * most[:, None] * 7.874015718698502e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("saved", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_codes_of_four_bits(
    twins: Callable[..., Any],
    kind: str,
    nested: bool,
    saved: str,
    dtype: str,
    alike: Callable[..., bool],
) -> None:
    folders = twins(four_bits(kind, nested, saved), FOUR, dtype=getattr(torch, dtype))
    assert alike(folders)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_int8_by_rows(
    twins: Callable[..., Any],
    dtype: str,
    alike: Callable[..., bool],
) -> None:
    folders = twins(eight_bits, EIGHT, dtype=getattr(torch, dtype))
    assert alike(folders)


@pytest.mark.parametrize("encode", [four_bits(), four_bits(nested=False), eight_bits])
def test_a_large_weight_is_read_in_parts(
    twins: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    encode: Encode,
    alike: Callable[..., bool],
) -> None:
    monkeypatch.setattr("rabbitllm.checkpoint.reads.CHUNK", 1 << 16)
    folders = twins(encode, FOUR, intermediate_size=6400)
    assert alike(folders)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32])
def test_codes_may_lie_in_another_dtype(
    twins: Callable[..., Any],
    storage: torch.dtype,
    alike: Callable[..., bool],
) -> None:
    """`bnb_4bit_quant_storage`, which training in parallel wants."""

    def encode(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        stored, decoded = four_bits()(weight)
        stored[".weight"] = stored[".weight"].view(-1).view(storage)[:, None]
        return stored, decoded

    folders = twins(encode, FOUR)
    assert alike(folders)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(f"{STEM}.weight.absmax"), f"there is no {STEM}.weight.absmax"),
        (lambda t: t.pop(f"{STEM}.weight.nested_quant_map"), "no such form is known: KeyError"),
        (
            lambda t: t.update({f"{STEM}.weight.absmax": torch.zeros(9, dtype=torch.uint8)}),
            "they do not belong together",
        ),
        (lambda t: t.update({STATE: text(a=1)}), "no such form is known: KeyError"),
        (lambda t: t.update({STATE: torch.ones(9)}), "no such form is known: "),
        (
            lambda t: t.update({STATE: text(shape=[3, 5], blocksize=64, dtype="bfloat16")}),
            "its 15 elements are no blocks of 64",
        ),
        (
            lambda t: t.update({STATE: text(shape=[96, 64], blocksize=0, dtype="bfloat16")}),
            "no such form is known: ",
        ),
    ],
)
def test_what_does_not_belong_together_is_named(
    twins: Callable[..., Any],
    logits: Callable[..., torch.Tensor],
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    folders = twins(four_bits(), FOUR)
    folders.change(change)
    with pytest.raises(CheckpointError, match=rf"^{STEM}.weight in \S* cannot be read: {message}"):
        logits(folders.quantised)


def test_another_order_of_int8_is_named(
    twins: Callable[..., Any], logits: Callable[..., torch.Tensor]
) -> None:
    folders = twins(eight_bits, EIGHT)
    folders.change(lambda tensors: tensors[f"{STEM}.weight_format"].fill_(2))
    with pytest.raises(CheckpointError, match=r"of int8, rows are read .*, this is the format 2"):
        logits(folders.quantised)


@pytest.mark.parametrize(("key", "encode"), [(STATE, four_bits()), (f"{STEM}.SCB", eight_bits)])
def test_codes_alone_are_named(
    twins: Callable[..., Any], logits: Callable[..., torch.Tensor], key: str, encode: Encode
) -> None:
    folders = twins(encode, FOUR)
    folders.change(lambda tensors: tensors.pop(key))
    with pytest.raises(CheckpointError, match=f"^{STEM}.weight in .* and there is no scale of it"):
        logits(folders.quantised)
