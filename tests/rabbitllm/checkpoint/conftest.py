from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


@pytest.fixture(scope="session")
def skeleton() -> Callable[..., PreTrainedModel]:
    """`skeleton(folder, dtype)` -> the stock model on the meta device."""

    def build(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
        with init_empty_weights(include_buffers=False):
            return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)

    return build
