"""Checkpoints in other number formats hold, nearly, the weights that they were made of."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from benchmarks.checkpoints import write_checkpoint
from benchmarks.formats.write import FORMATS, write_format
from rabbitllm import AutoModel

ALLOWED = {"bf16": 0, "fp8": 0.03, "nf4": 0.12, "mxfp4": 0.2}
"""Relative error of a weight; of the integers of 4 bits, 0.15."""


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=256,
        intermediate_size=384,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return write_checkpoint(config, tmp_path_factory.mktemp("plain"), torch.bfloat16, "cpu")


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_those_of_the_source_within_rounding(
    name: str, plain: Path, tmp_path: Path
) -> None:
    folder = write_format(plain, tmp_path / name, name, "cpu")
    before = AutoModel.from_pretrained(plain, device="cpu").state_dict()
    after = AutoModel.from_pretrained(folder, device="cpu").state_dict()
    assert before.keys() == after.keys()
    for key, weight in before.items():
        error = (after[key].float() - weight.float()).norm() / weight.float().norm()
        assert error <= ALLOWED.get(name, 0.15), key
        assert bool(error) == (name != "bf16" and "_proj" in key)


def test_what_is_there_is_kept(plain: Path, tmp_path: Path) -> None:
    folder = write_format(plain, tmp_path / "fp8", "fp8", "cpu")
    before = {file.name: file.stat().st_ino for file in folder.iterdir()}
    write_format(plain, folder, "fp8", "cpu")
    assert before == {file.name: file.stat().st_ino for file in folder.iterdir()}
