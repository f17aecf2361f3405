"""An architecture under another name is the one that transformers has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rabbitllm import CheckpointError, StreamedModel
from rabbitllm.checkpoint import legacy
from rabbitllm.checkpoint.legacy import renamed

YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 1.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
NAMES = {
    "kimi_k2": ("deepseek_v3", {"rope_scaling": YARN, "rope_theta": 50000.0}),
    "aquila": ("llama", {"rope_theta": 20000.0}),
    "xverse": ("llama", {}),
}


def published(folder: Path, model_type: str, fields: dict[str, Any]) -> None:
    """Gives config.json the form of its authors: rope in fields of its own, and code."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("rope_parameters", None)
    config |= fields | {
        "model_type": model_type,
        "auto_map": {"AutoConfig": "configuration_own.OwnConfig"},
    }
    path.write_text(json.dumps(config))


@pytest.mark.parametrize("name", NAMES)
def test_it_answers_as_stock_does_under_its_own_name(
    name: str,
    copied: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    native, fields = NAMES[name]
    folder = copied(native)
    published(folder, native, fields)
    with torch.no_grad():
        expected = stock(folder)(prompt).logits
        published(folder, name, fields)
        (folder / "configuration_own.py").write_text("raise SystemExit('ran')")
        assert torch.equal(streamed(folder, trust_remote_code=True)(prompt).logits, expected)


def test_every_name_is_tested() -> None:
    rows = [row for row in legacy.LEGACY if row.config is renamed.config]
    assert {row.model_type: row.native for row in rows} == {
        name: native for name, (native, _) in NAMES.items()
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [("moe_layer_freq", 2), ("scoring_func", "softmax"), ("topk_method", "greedy")],
)
def test_another_mixture_is_refused(
    copied: Callable[..., Path], streamed: Callable[..., StreamedModel], field: str, value: object
) -> None:
    folder = copied("deepseek_v3")
    published(folder, "kimi_k2", {field: value})
    with pytest.raises(CheckpointError, match=f"Kimi K2 with {field}={value!r} cannot be run"):
        streamed(folder)
