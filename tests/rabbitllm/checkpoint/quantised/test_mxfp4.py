from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rabbitllm import CheckpointError
from rabbitllm.streaming.devices import cuda
from tests.rabbitllm.streaming.devices import twin
from tests.rabbitllm.streaming.simulated import simulate

SETTINGS = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
EXPERTS = r"experts\.(gate_up|down)_proj$"
VALUES = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
KEY = "model.layers.0.mlp.experts.down_proj"


def encode(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random codes, for experts [experts, in, out]."""
    experts, columns, rows = weight.shape
    blocks = torch.randint(0, 256, (experts, rows, columns // 32, 16), dtype=torch.uint8)
    scales = torch.randint(118, 124, blocks.shape[:3], dtype=torch.uint8)
    codes = torch.stack([blocks & 15, blocks >> 4], -1).flatten(-2).long()
    values = torch.tensor(VALUES)[codes] * torch.tensor(2.0) ** (scales[..., None].float() - 127)
    return {"_blocks": blocks, "_scales": scales}, values.flatten(-2).mT


FIELDS = {
    "intermediate_size": 64,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}


@pytest.fixture
def folders(twins: Callable[..., Any]) -> Any:
    return twins(encode, SETTINGS, "gpt_oss", EXPERTS, **FIELDS)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_experts_are_read_in_place(
    folders: Any,
    stock: Callable[..., PreTrainedModel],
    logits: Callable[..., torch.Tensor],
    prompt: torch.Tensor,
    dtype: str,
) -> None:
    expected = stock(folders.plain, dtype=dtype)(prompt).logits
    assert torch.equal(logits(folders.quantised, dtype=dtype), expected)


def test_what_stock_reads_is_the_same(
    folders: Any,
    stock: Callable[..., PreTrainedModel],
    logits: Callable[..., torch.Tensor],
    prompt: torch.Tensor,
) -> None:
    from transformers import Mxfp4Config

    config = Mxfp4Config(dequantize=True)
    reference = stock(folders.quantised, quantization_config=config, dtype=torch.bfloat16)
    assert torch.equal(logits(folders.quantised), reference(prompt).logits)


@torch.inference_mode()
def test_a_device_fetches_and_decodes_experts_itself(
    folders: Any,
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., PreTrainedModel],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A token's; a prompt asks for all, and the host brings those."""
    simulate(monkeypatch)
    decoded: list[None] = []
    spy = SimpleNamespace(**vars(twin))
    spy.decode_rows = lambda *arguments: decoded.append(twin.decode_rows(*arguments))
    monkeypatch.setattr(cuda, "row_kernels", lambda *_: spy)
    model = streamed(folders.quantised, device_memory="min", host_memory="auto")
    reference = stock(folders.plain)
    for ids in (prompt, *prompt.T[:5, :1, None], prompt, *prompt.T[5:, :1, None]):
        assert torch.equal(model(ids).logits, reference(ids).logits)
    layers, tokens = 2, 9
    assert len(decoded) == layers * tokens
    stats = model.streaming_stats()
    assert 0 < stats["rows_brought"] < stats["rows_asked"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(KEY + "_scales"), f"{KEY} in .* cannot be read: there is no {KEY}_scales"),
        (
            lambda t: t.update({KEY + "_blocks": torch.zeros(4, 64, 4, 8, dtype=torch.uint8)}),
            f"{KEY} in .* cannot be read: blocks have 16 bytes",
        ),
        (
            lambda t: t.update({KEY + "_scales": torch.zeros(4, 64, 3, dtype=torch.uint8)}),
            f"{KEY} in .* cannot be read: they do not belong together",
        ),
        (
            lambda t: t.update({KEY + "_blocks": torch.zeros(4, 64, 32, dtype=torch.uint8)}),
            f"{KEY} in .* cannot be read: blocks have 16 bytes",
        ),
    ],
)
def test_what_does_not_belong_together_is_named(
    folders: Any,
    logits: Callable[..., torch.Tensor],
    change: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    folders.change(change)
    with pytest.raises(CheckpointError, match=message):
        logits(folders.quantised)


def test_a_compression_does_not_store_experts_as_they_compute(
    twins: Callable[..., Any],
    logits: Callable[..., torch.Tensor],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """All else would take fewer bytes in a store, and the experts four times as many."""
    folders = twins(
        encode, SETTINGS, "gpt_oss", EXPERTS, **FIELDS | {"hidden_size": 256, "head_dim": 64}
    )
    options = {"compression": "lossless", "layer_shards_saving_path": tmp_path / "stores"}
    answer = logits(folders.quantised, dtype="bfloat16", **options)
    assert torch.equal(answer, logits(folders.quantised, dtype="bfloat16"))
    assert not (tmp_path / "stores").exists()
    assert "take fewer bytes as they are stored there" in caplog.text
