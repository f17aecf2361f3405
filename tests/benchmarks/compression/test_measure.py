from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.compression import measure
from rabbitllm.checkpoint.codecs import COMPRESSIONS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4}
    config = LlamaConfig(vocab_size=300, num_attention_heads=4, dtype="bfloat16", **sizes)
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_each_compression_is_compared_with_the_checkpoint(folder: Path) -> None:
    windows = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0))
    plain, *others = measure.measure(folder, windows)
    assert plain["compression"] == "none"
    found = {record["compression"]: record for record in others}
    assert list(found) == list(COMPRESSIONS)
    assert found["lossless"]["relative_error"] == found["lossless"]["kl_divergence"] == 0
    assert found["lossless"]["perplexity"] == plain["perplexity"]
    errors = [float(found[name]["relative_error"]) for name in ("lossless", "8bit", "4bit")]
    assert errors == sorted(set(errors))
    sizes = [float(record["bytes_from_disk"]) for record in (plain, *others)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.4 * sizes[0]
    assert json.dumps(others)
