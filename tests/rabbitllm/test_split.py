from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from rabbitllm import CheckpointError
from rabbitllm.utils import find_or_create_local_splitted_path


@pytest.mark.parametrize("architecture", ["llama-tied", "mixtral"])
def test_a_checkpoint_is_split_into_a_file_for_each_layer(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    tmp_path: Path,
    architecture: str,
) -> None:
    folder, store = find_or_create_local_splitted_path(checkpoint(architecture), tmp_path)
    assert folder == checkpoint(architecture)
    assert store.parent == tmp_path
    state = stock(folder).state_dict()
    for n in range(4):
        held = load_file(store / f"model.layers.{n}.safetensors")
        assert held.keys() == {name for name in state if name.startswith(f"model.layers.{n}.")}
        assert all(torch.equal(tensor, state[name]) for name, tensor in held.items())


def test_it_is_found_at_the_second_call(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    first = find_or_create_local_splitted_path(checkpoint(), tmp_path)
    files = {file: file.stat().st_mtime_ns for file in first[1].glob("*.safetensors")}
    assert find_or_create_local_splitted_path(checkpoint(), tmp_path) == first
    assert {file: file.stat().st_mtime_ns for file in files} == files


def test_without_a_folder_it_goes_to_the_cache(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITLLM_CACHE", str(tmp_path))
    assert find_or_create_local_splitted_path(checkpoint())[1].parent == tmp_path


def test_what_is_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such folder"):
        find_or_create_local_splitted_path(tmp_path / "none", tmp_path)
