"""The pointer in a checkpoint's folder is anybody's: it is read with care."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rabbitllm import CheckpointError, StreamedModel
from rabbitllm.checkpoint.inventory import find_moved
from rabbitllm.checkpoint.moved import (
    DESCRIPTION,
    MOVED,
    USED_BY,
    Shard,
    read_pointer,
    register,
    replaced_shards,
    users,
    write_pointer,
)
from rabbitllm.checkpoint.plain_json import MAX_JSON_BYTES
from rabbitllm.prepare import prepare
from rabbitllm.utils import find_or_create_local_splitted_path

NOWHERE = [
    "",
    "{}",
    "[]",
    "null",
    "\xff",
    '{"store": 3}',
    '{"store": ""}',
    '{"store": "."}',
    '{"store": "stores/a"}',
    '{"store": "../../etc"}',
    '{"store": "/a\\u0000b"}',
    '{"store": "/\\ud800"}',
    '{"store": {"store": "/tmp"}}',
    '{"store": ' * 100_000,
    "[" * 100_000,
    '{"store": "/' + "a" * MAX_JSON_BYTES + '"}',
]


@pytest.fixture
def store(checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A store that nobody's weights were moved to."""
    return find_or_create_local_splitted_path(checkpoint("mixtral"), tmp_path / "stores")[1]


def point(folder: Path, place: Path | str) -> None:
    (folder / MOVED).write_text(json.dumps({"store": str(place)}))


@pytest.mark.parametrize("text", NOWHERE, ids=lambda text: text[:20])
def test_a_pointer_that_names_no_place_is_named(
    copied: Callable[..., Path], streamed: Callable[..., StreamedModel], text: str
) -> None:
    folder = copied("mixtral")
    (folder / MOVED).write_text(text, encoding="latin-1")
    with pytest.raises(CheckpointError, match=f"{MOVED} does not say where.* Delete it if"):
        streamed(folder)


@pytest.mark.parametrize("name", ["absent", "a" * 300, "a/" * 3000])
def test_a_store_that_is_gone_is_named(
    copied: Callable[..., Path], streamed: Callable[..., StreamedModel], tmp_path: Path, name: str
) -> None:
    folder = copied("mixtral")
    point(folder, tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{folder} were moved to {tmp_path}.*{MOVED}"):
        streamed(folder)


def test_a_pointer_that_is_a_link_in_a_circle_is_named(
    copied: Callable[..., Path], streamed: Callable[..., StreamedModel], tmp_path: Path
) -> None:
    folder = copied("mixtral")
    (tmp_path / "a").symlink_to(tmp_path / "a")
    point(folder, tmp_path / "a")
    with pytest.raises(CheckpointError, match=MOVED):
        streamed(folder)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "{}",
        "[" * 100_000,
        '{"holds": []}',
        '{"holds": ["../../x"]}',
        '{"dtypes": [], "codecs": [], "source": "/x", "holds": ["../x"]}',
        '{"dtypes": [], "codecs": [], "source": "/x", "holds": ["a/b"]}',
        '{"dtypes": [], "codecs": [], "source": "/x", "holds": [3]}',
    ],
    ids=lambda text: str(text)[:50],
)
def test_a_folder_that_is_no_store_is_named(
    copied: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    tmp_path: Path,
    text: str | None,
) -> None:
    folder, thesis = copied("mixtral"), tmp_path / "thesis"
    thesis.mkdir()
    shutil.copy(folder / "model.safetensors", thesis)
    if text is not None:
        (thesis / DESCRIPTION).write_text(text)
    point(folder, thesis)
    with pytest.raises(CheckpointError, match=f"{MOVED} names {thesis}, which is no layer store"):
        streamed(folder)
    assert (thesis / "model.safetensors").is_file()


def test_a_store_of_another_model_is_named(
    copied: Callable[..., Path], store: Path, streamed: Callable[..., StreamedModel]
) -> None:
    folder = copied("llama")
    point(folder, store)
    message = f"tensors are missing from the checkpoint in {store}, which {folder / MOVED} leads to"
    with pytest.raises(CheckpointError, match=message):
        streamed(folder)


def test_a_store_of_another_size_is_named(
    copied: Callable[..., Path],
    store: Path,
    streamed: Callable[..., StreamedModel],
    configure: Callable[..., None],
) -> None:
    folder = copied("mixtral")
    point(folder, store)
    configure(folder, vocab_size=161)
    with pytest.raises(CheckpointError, match=f"{store}, which {folder / MOVED} leads to asks"):
        streamed(folder)


def test_a_file_that_a_store_has_lost_is_named(
    copied: Callable[..., Path], store: Path, streamed: Callable[..., StreamedModel]
) -> None:
    folder = copied("mixtral")
    point(folder, store)
    streamed(folder)
    (store / "resident.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"{store}, where resident\.safetensors is missing"):
        streamed(folder)


def test_what_else_lies_in_a_store_is_not_read(
    copied: Callable[..., Path], store: Path, streamed: Callable[..., StreamedModel]
) -> None:
    folder = copied("mixtral")
    point(folder, store)
    save_file({"lm_head.weight": torch.ones(3)}, store / "zzz.safetensors")
    streamed(folder)


def test_a_store_that_cannot_be_written_to_is_read(
    copied: Callable[..., Path],
    store: Path,
    streamed: Callable[..., StreamedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    folder = copied("mixtral")
    point(folder, store)
    monkeypatch.setattr("rabbitllm.checkpoint.moved.write_durably", refuse)
    streamed(folder)
    assert users(store) == ()


def test_planning_leaves_no_record(copied: Callable[..., Path], store: Path) -> None:
    folder = copied("mixtral")
    point(folder, store)
    prepare(folder, None, torch.device("cpu"), "auto", "auto", False)
    assert users(store) == ()


def test_a_checkpoint_is_a_user_until_its_folder_is_seen_to_be_none(
    tmp_path: Path,
) -> None:
    store, folder = tmp_path / "store", tmp_path / "checkpoint"
    store.mkdir()
    folder.mkdir()
    (folder / "a").write_text("weights")
    shard = Shard.of(folder / "a")
    register(store, folder, [shard])
    assert users(store) == ()  # the pointer was not written
    write_pointer(folder, store)
    assert read_pointer(folder) == store
    assert users(store) == (folder,)
    register(store, folder)
    assert replaced_shards(store, folder) == [shard]
    (folder / "a").unlink()
    folder.rename(tmp_path / "elsewhere")
    assert users(store) == (folder,)
    (tmp_path / "elsewhere").rename(folder)
    (folder / MOVED).write_text("spoiled")
    assert users(store) == (folder,)
    write_pointer(folder, tmp_path / "gone")
    assert users(store) == (folder,)  # what is gone can have been followed by this store
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / DESCRIPTION).touch()
    assert users(store) == ()


def test_a_folder_that_took_the_place_of_a_moved_one_hides_it_not(tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "checkpoint"
    store.mkdir()
    folder.mkdir()
    (folder / "a").write_text("weights")
    register(store, folder, [Shard.of(folder / "a")])
    write_pointer(folder, store)
    (folder / "a").unlink()
    folder.rename(tmp_path / "elsewhere")
    folder.mkdir()
    (folder / "a").write_text("weights, downloaded again")
    assert users(store) == (folder,)


def test_a_record_that_cannot_be_read_counts(tmp_path: Path) -> None:
    record = tmp_path / f"{USED_BY}0123"
    for text in ("", "{}", "[" * 100_000):
        record.write_text(text)
        assert users(tmp_path) == (record,)


@pytest.mark.parametrize("name", ["../a", "/a", "b/a", ""])
def test_a_record_names_files_of_the_folder_alone(tmp_path: Path, name: str) -> None:
    register(tmp_path, tmp_path, [Shard(name, 1, 2)])
    assert replaced_shards(tmp_path, tmp_path) in ([], [Shard("", 1, 2)])
    assert not Shard("", 1, 2).is_in(tmp_path)


def test_no_pointer_is_no_store(tmp_path: Path) -> None:
    assert read_pointer(tmp_path) is None
    assert find_moved(tmp_path) is None
