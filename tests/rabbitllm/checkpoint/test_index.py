from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from rabbitllm import CheckpointError
from rabbitllm.checkpoint.index import read_index
from rabbitllm.checkpoint.tensors import TensorEntry, total_bytes


def shard(folder: Path, weight_map: object) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture(scope="module")
def shards(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The llama checkpoint, in several shards."""
    folder = tmp_path_factory.mktemp("shards")
    model = AutoModelForCausalLM.from_pretrained(checkpoint())
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("*.safetensors"))) > 2
    return folder


@pytest.fixture
def sharded(shards: Path, tmp_path: Path) -> Path:
    for file in shards.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def read(entry: TensorEntry) -> torch.Tensor:
    place = entry.stored[0]
    data = place.file.read_bytes()[place.offset : place.offset + place.nbytes]
    return torch.frombuffer(bytearray(data), dtype=entry.dtype).reshape(entry.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_index_of_a_single_file_finds_every_tensor(
    checkpoint: Callable[..., Path], dtype: torch.dtype
) -> None:
    folder = checkpoint("llama", dtype)
    state = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
    entries = read_index(folder)
    assert entries.keys() == state.keys()
    for name, entry in entries.items():
        assert entry.dtype == dtype
        assert torch.equal(read(entry), state[name])
    assert total_bytes(entries.values()) == sum(t.nbytes for t in state.values())


def test_index_of_shards_equals_that_of_the_single_file(
    checkpoint: Callable[..., Path], shards: Path
) -> None:
    single, several = read_index(checkpoint()), read_index(shards)
    assert single.keys() == several.keys()
    assert len({entry.file for entry in several.values()}) > 2
    for name, entry in several.items():
        assert torch.equal(read(entry), read(single[name]))


def test_a_missing_shard_is_named(sharded: Path) -> None:
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=rf"{lost.name} \(\d+ tensors\) is missing from"):
        read_index(sharded)


@pytest.mark.parametrize("left", [-1, -10_000, 1000])
def test_a_truncated_shard_is_named_with_both_sizes(sharded: Path, left: int) -> None:
    cut = sorted(sharded.glob("*.safetensors"))[1]
    whole = cut.read_bytes()
    cut.write_bytes(whole[:left])
    if left > 0:  # not even the whole header
        message = rf"{cut.name} is no safetensors file or is truncated \(1,000 bytes\)"
    else:
        message = (
            rf"{cut.name} is truncated: it has {len(whole) + left:,} bytes, its header describes "
            rf"{len(whole):,}\."
        )
    with pytest.raises(CheckpointError, match=message):
        read_index(sharded)


def test_a_shard_with_something_behind_its_data_is_refused(sharded: Path) -> None:
    grown = sorted(sharded.glob("*.safetensors"))[1]
    grown.write_bytes(grown.read_bytes() + b"more")
    with pytest.raises(CheckpointError, match=rf"{grown.name} is damaged: it has .* bytes, its"):
        read_index(sharded)


@pytest.mark.parametrize("name", ["a" * 5000, "\ud800", "\0"], ids=["long", "surrogate", "nul"])
def test_a_shard_whose_name_no_file_has_is_missing(sharded: Path, name: str) -> None:
    shard(sharded, {"w": f"{name}.safetensors"})
    with pytest.raises(CheckpointError, match=r"safetensors \(1 tensors\) is missing from"):
        read_index(sharded)


def test_a_tensor_that_its_shard_lacks_is_named(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    weight_map["model.extra.weight"] = next(iter(weight_map.values()))
    shard(sharded, weight_map)
    with pytest.raises(CheckpointError, match=r"lists model\.extra\.weight in .* does not hold it"):
        read_index(sharded)


@pytest.mark.parametrize(
    "name",
    [
        "../elsewhere.safetensors",
        "/elsewhere.safetensors",
        "sub/model.safetensors",
        "model.bin",
        "..",
        "",
        3,
        None,
        ["model.safetensors"],
        {"a": 1},
    ],
)
def test_an_index_that_leads_out_of_the_folder_is_refused(tmp_path: Path, name: object) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    save_file({"w": torch.zeros(1)}, tmp_path / "elsewhere.safetensors")
    with pytest.raises(CheckpointError, match="no safetensors file of that folder"):
        read_index(shard(folder, {"w": name}))


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}", '{"weight_map": 3}', pytest.param("[" * 100_000, id="deep"), "\xff"],
)
def test_an_index_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=r"index\.json is no index of shards"):
        read_index(tmp_path)


def test_pickles_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin.*can run code.*save_pretrained"):
        read_index(tmp_path)


def test_a_folder_without_weights_says_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.safeten"):
        read_index(tmp_path)
