from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.checkpoints import (
    PERIOD,
    SHAPES,
    cyclic_prompt,
    write_checkpoint,
    write_cyclic,
    write_shorter,
)
from benchmarks.streaming.setups import stock


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    return write_checkpoint(SHAPES["tiny"], root / "tiny", torch.float32, "cpu")


def test_a_cyclic_checkpoint_goes_on_as_it_was_prompted(folder: Path) -> None:
    cyclic = write_cyclic(folder, folder.with_name("cyclic"))
    model = stock(cyclic)
    prompt = cyclic_prompt(PERIOD + 5)
    output = model.generate(prompt, max_new_tokens=40, min_new_tokens=40, do_sample=False)
    assert torch.equal(output, cyclic_prompt(PERIOD + 45))
    assert write_cyclic(folder, cyclic) == cyclic


def test_a_tied_head_cannot_be_cyclic(folder: Path, tmp_path: Path) -> None:
    name = "model.safetensors.index.json"
    index = json.loads((folder / name).read_text())
    del index["weight_map"]["lm_head.weight"]
    (tmp_path / name).write_text(json.dumps(index))
    with pytest.raises(ValueError, match="tied head"):
        write_cyclic(tmp_path, tmp_path / "cyclic")


def test_a_shorter_model_is_the_first_layers_of_the_whole(folder: Path, tmp_path: Path) -> None:
    short = stock(write_shorter(folder, tmp_path / "short", 2))
    whole = stock(folder)
    assert short.config.num_hidden_layers == 2
    for name, parameter in short.named_parameters():
        assert torch.equal(parameter, whole.get_parameter(name)), name
