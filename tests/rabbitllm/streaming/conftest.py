from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from rabbitllm.prepare import Prepared
from rabbitllm.streaming.pipeline import Pipeline
from tests.rabbitllm.streaming import listed_code
from tests.rabbitllm.streaming.listed_code import ListedConfig, ListedForCausalLM


@pytest.fixture
def check_answers(
    stock: Callable[..., PreTrainedModel],
) -> Callable[[Path, Prepared, Pipeline, list[torch.Tensor]], None]:
    """Compares the logits that a pipeline computes with those of stock, to the bit."""

    def check(
        folder: Path, prepared: Prepared, pipeline: Pipeline, prompts: list[torch.Tensor]
    ) -> None:
        reference = stock(folder, attn_implementation="eager")
        for ids in prompts:
            output = pipeline.run(type(reference).forward, (prepared.model, ids))
            assert torch.equal(output.logits, reference(ids).logits)

    return check


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Path]]:
    """`listed(field=value)` -> a folder with a mixture that brings its code along."""
    for module in ("transformers.utils.hub", "transformers.dynamic_module_utils"):
        monkeypatch.setattr(f"{module}.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))

    def write(**fields: Any) -> Path:
        torch.manual_seed(0)
        model = ListedForCausalLM(ListedConfig(**fields))
        for tensor in model.state_dict().values():
            nn.init.normal_(tensor, std=0.3)
        model.config.auto_map = {
            "AutoConfig": "listed_code.ListedConfig",
            "AutoModelForCausalLM": "listed_code.ListedForCausalLM",
        }
        model.save_pretrained(tmp_path / "listed")
        shutil.copy(str(listed_code.__file__), tmp_path / "listed")
        return tmp_path / "listed"

    yield write
    for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
        del sys.modules[name]
