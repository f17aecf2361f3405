from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from rabbitllm.prepare import Prepared
from rabbitllm.streaming.pipeline import Pipeline


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
