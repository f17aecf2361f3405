from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from rabbitllm import CheckpointError
from rabbitllm.checkpoint.index import Asked, read_index
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


def test_a_key_that_its_shard_lacks_is_left_out(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    expected = set(weight_map)
    weight_map["model.extra.weight"] = next(iter(weight_map.values()))
    shard(sharded, weight_map)
    assert read_index(sharded).keys() == expected


def test_shards_may_lie_in_a_folder_of_their_own(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    before = read_index(sharded)
    (sharded / "parts").mkdir()
    for file in sharded.glob("model-*.safetensors"):
        file.rename(sharded / "parts" / file.name)
    shard(sharded, {key: f"parts/{name}" for key, name in weight_map.items()})
    after = read_index(sharded)
    assert after.keys() == before.keys()
    assert {entry.file.parent for entry in after.values()} == {sharded / "parts"}


@pytest.mark.parametrize(
    "name",
    [
        "../elsewhere.safetensors",
        "/elsewhere.safetensors",
        "sub/../../elsewhere.safetensors",
        "..\\elsewhere.safetensors",
        "C:elsewhere.safetensors",
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


def saved(folder: Path, name: str, value: float) -> None:
    write = save_file if name.endswith(".safetensors") else torch.save
    write({"w": torch.full((2,), value)}, folder / name)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (Asked(), "model.safetensors"),
        (Asked(use_safetensors=True), "model.safetensors"),
        (Asked(use_safetensors=False), "pytorch_model.bin"),
        (Asked(variant="fp16"), "model.fp16.safetensors"),
        (Asked(variant="fp16", use_safetensors=False), "pytorch_model.fp16.bin"),
    ],
)
def test_stock_rules_choose_among_files(tmp_path: Path, asked: Asked, expected: str) -> None:
    for name in ("model.safetensors", "pytorch_model.bin"):
        saved(tmp_path, name, 1.0)
        saved(tmp_path, name.replace(".", ".fp16.", 1), 2.0)
    shard(tmp_path, {"w": "model-00001-of-00001.safetensors"})  # which is not there
    assert read_index(tmp_path, asked)["w"].file.name == expected


def test_the_file_that_the_config_names_comes_first(tmp_path: Path) -> None:
    saved(tmp_path, "model.safetensors", 1.0)
    saved(tmp_path, "final.safetensors", 2.0)
    (tmp_path / "config.json").write_text('{"transformers_weights": "final.safetensors"}')
    assert read_index(tmp_path)["w"].file.name == "final.safetensors"


@pytest.mark.parametrize("name", ["../final.safetensors", "/f.safetensors", "final.bin", 3, ["f"]])
def test_a_config_that_names_another_place_is_refused(tmp_path: Path, name: object) -> None:
    saved(tmp_path, "model.safetensors", 1.0)
    (tmp_path / "config.json").write_text(json.dumps({"transformers_weights": name}))
    with pytest.raises(CheckpointError, match="as transformers_weights, which is no safetensors"):
        read_index(tmp_path)


def test_a_folder_without_weights_says_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none of model\.safetensors, .*pytorch_model\.bin"):
        read_index(tmp_path)
    saved(tmp_path, "model.fp16.safetensors", 1.0)
    with pytest.raises(CheckpointError, match=r"but model\.fp16\.safetensors\. variant= names"):
        read_index(tmp_path)
