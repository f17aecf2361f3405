from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rabbitllm.checkpoint import store_file
from rabbitllm.checkpoint.inventory import damaged, find_stores, remove
from rabbitllm.checkpoint.moved import DESCRIPTION
from rabbitllm.checkpoint.naming import LOCK
from rabbitllm.prepare import prepare
from rabbitllm.utils import find_or_create_local_splitted_path


@pytest.fixture
def store(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """The layer store of a mixtral, in `tmp_path`."""
    return find_or_create_local_splitted_path(checkpoint("mixtral"), tmp_path)[1]


def test_a_store_says_what_it_is_of(store: Path, checkpoint: Callable[..., Path]) -> None:
    (found,) = find_stores(store.parent)
    assert found.folder == store
    assert found.source == checkpoint("mixtral")
    assert found.dtypes == ("float32",)
    assert found.complete
    assert not found.only_copy
    weights = sum(file.stat().st_size for file in store.glob("*.safetensors"))
    assert weights < found.nbytes < weights + 10_000


def test_a_missing_file_or_description_makes_it_incomplete(store: Path) -> None:
    next(store.glob("*.safetensors")).unlink()
    assert not find_stores(store.parent)[0].complete
    for spoiled in ("", "[]", '{"holds": []}', json.dumps({"source": 3, "dtypes": 4})):
        (store / DESCRIPTION).write_text(spoiled)
        (found,) = find_stores(store.parent)
        assert not found.complete
        assert found.source is None


def test_the_only_copy_is_known_as_such(copied: Callable[..., Path], tmp_path: Path) -> None:
    folder = copied("mixtral")
    prepared = prepare(folder, None, torch.device("cpu"), "auto", "auto", False)
    prepared.location.locate(tmp_path / "stores", delete_original=True)
    (found,) = find_stores(tmp_path / "stores")
    assert found.only_copy
    assert found.source == folder


@pytest.mark.parametrize("place", [0, 8, 40, -1, -5000])
def test_one_bit_that_turns_is_found(store: Path, place: int) -> None:
    (found,) = find_stores(store.parent)
    assert damaged(found) == []
    file = store / "model.layers.2.safetensors"
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    assert damaged(found) == [file]


def test_a_file_that_is_cut_off_while_it_is_verified_is_found(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (found,) = find_stores(store.parent)
    file = max(store.glob("*.safetensors"), key=lambda each: each.stat().st_size)
    opened = store_file.safe_open

    def cutting(path: Path, framework: str) -> Any:
        held = opened(path, framework)
        if path == file:
            os.truncate(path, 4096)
        return held

    monkeypatch.setattr(store_file, "safe_open", cutting)
    assert damaged(found) == [file]


def test_values_that_changed_places_are_found(store: Path) -> None:
    (found,) = find_stores(store.parent)
    file = store / "model.layers.2.safetensors"
    tensors = load_file(file)
    with safe_open(file, "pt") as held:
        metadata = held.metadata()
    norms = [name for name in tensors if "layernorm" in name]
    save_file(
        tensors | dict(zip(norms, [tensors[n] for n in norms[::-1]], strict=True)), file, metadata
    )
    assert damaged(found) == [file]
    save_file(tensors, file)
    assert damaged(found) == [file]  # it does not say what it held
    save_file(tensors, file, metadata)
    assert damaged(found) == []


def test_no_folder_has_no_stores(tmp_path: Path) -> None:
    assert find_stores(tmp_path / "absent") == []


def test_a_store_is_removed_unless_it_is_being_filled(store: Path) -> None:
    (found,) = find_stores(store.parent)
    with FileLock(store / LOCK), pytest.raises(ValueError, match="being filled"):
        remove(found)
    assert found.folder.is_dir()
    remove(found)
    assert find_stores(store.parent) == []
