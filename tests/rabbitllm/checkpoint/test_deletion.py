"""`delete_original` deletes what it has shown to lie elsewhere, and nothing else."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from rabbitllm import BudgetError, CheckpointError, StreamedModel
from rabbitllm.checkpoint.deletion import replace_originals
from rabbitllm.checkpoint.index import SAFETENSORS
from rabbitllm.checkpoint.inventory import describe, find_stores
from rabbitllm.checkpoint.moved import DESCRIPTION, MOVED, USED_BY, users
from rabbitllm.checkpoint.naming import LOCK
from rabbitllm.checkpoint.store_file import CHECKSUM, checksum
from rabbitllm.cli import main
from rabbitllm.prepare import Prepared, prepare

Usage = namedtuple("Usage", "total used free")
Load = Callable[..., StreamedModel]
Copy = Callable[..., Path]


def prepared(folder: Path, dtype: str = "auto") -> Prepared:
    return prepare(folder, None, torch.device("cpu"), dtype, "auto", False)


def delete(folder: Path, root: Path, dtype: str = "auto", compressed: bool = False) -> Path:
    """Puts a layer store in the place of a checkpoint's shards; returns its folder."""
    located = prepared(folder, dtype).location.locate(
        root, True, "lossless" if compressed else None
    )
    return next(iter(located.values())).file.parent


def weights(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}


def rewrite_store(file: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Changes a store's file in such a way that its checksum is right."""
    tensors = load_file(file)
    with safe_open(file, "pt") as held:
        metadata = held.metadata()
    change(tensors)
    save_file(tensors, file, metadata | {CHECKSUM: checksum(sorted(tensors.items()))})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "stores"


@pytest.fixture
def moe(copied: Copy) -> Path:
    """A checkpoint in one file that needs a store."""
    return copied("mixtral")


@pytest.fixture
def large(build: Callable[..., PreTrainedModel], tmp_path: Path) -> Path:
    """A checkpoint that needs a store, and another for what of it can be compressed."""
    folder = tmp_path / "large"
    fields = {"hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 2}
    build("mixtral", torch.bfloat16, num_local_experts=2, **fields).save_pretrained(folder)
    return folder


# what goes


def test_deleted_originals_are_read_from_the_store(
    moe: Path,
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Load,
    prompt: torch.Tensor,
    root: Path,
) -> None:
    options = {"layer_shards_saving_path": root}
    expected = stock(checkpoint("mixtral"))(prompt).logits
    first = streamed(moe, delete_original=True, **options)
    assert torch.equal(first(prompt).logits, expected)
    assert weights(moe) == {}
    (store,) = root.iterdir()
    before = weights(store)
    for deleting in (False, True):
        again = streamed(moe, delete_original=deleting, **options)
        assert torch.equal(again(prompt).logits, expected)
    assert weights(store) == before
    assert list(root.iterdir()) == [store]
    assert prepared(moe).location.split(root) == store


def test_shards_and_their_index_go(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    shutil.copytree(checkpoint("mixtral"), folder)
    tensors = load_file(folder / SAFETENSORS.single)
    (folder / SAFETENSORS.single).unlink()
    names = {key: f"part-{i % 3}.safetensors" for i, key in enumerate(sorted(tensors))}
    for name in set(names.values()):
        part = {key: tensors[key] for key in tensors if names[key] == name}
        save_file(part, folder / name, {"format": "pt"})
    (folder / SAFETENSORS.index).write_text(json.dumps({"weight_map": names}))
    save_file({"x": torch.ones(3)}, folder / "of-somebody-else.safetensors")
    delete(folder, tmp_path / "stores")
    assert list(weights(folder)) == ["of-somebody-else.safetensors"]
    assert not (folder / SAFETENSORS.index).exists()


def test_tied_weights_that_are_in_the_checkpoint_twice_are_kept_once(
    build: Callable[..., PreTrainedModel],
    rewrite: Callable[..., None],
    streamed: Load,
    prompt: torch.Tensor,
    tmp_path: Path,
    root: Path,
) -> None:
    folder = tmp_path / "tied"
    build("mixtral", num_local_experts=2, tie_word_embeddings=True).save_pretrained(folder)
    rewrite(folder, lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    expected = streamed(folder)(prompt).logits
    delete(folder, root)
    assert weights(folder) == {}
    assert torch.equal(streamed(folder)(prompt).logits, expected)


def test_values_that_are_no_numbers_keep_their_bits(
    moe: Path, rewrite: Callable[..., None], root: Path
) -> None:
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    bits = torch.arange(0x7F800000, 0x7F800000 + 64 * 96, dtype=torch.int32) - 31  # inf and NaN
    rewrite(moe, lambda tensors: tensors | {name: bits.view(torch.float32).view(96, 64)})
    store = delete(moe, root)
    assert weights(moe) == {}
    fused = load_file(store / "model.layers.1.safetensors")[
        "model.layers.1.mlp.experts.gate_up_proj"
    ]
    assert torch.equal(fused[2, :96].contiguous().view(torch.int32).flatten(), bits)


# what stays: the store would not hold everything


@pytest.mark.parametrize("extra", ["vision_tower.patch.weight", "model.layers.9.mtp.weight"])
def test_tensors_that_the_model_does_not_use_are_named_and_kept(
    moe: Path, rewrite: Callable[..., None], root: Path, extra: str
) -> None:
    rewrite(moe, lambda tensors: tensors | {extra: torch.ones(2, 3)})
    before = weights(moe)
    with pytest.raises(CheckpointError, match=rf"{moe} hold .*{extra}.*Leave delete_original"):
        delete(moe, root)
    assert weights(moe) == before
    assert not (moe / MOVED).exists()
    assert not root.exists()  # it is known before hours are spent


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_another_precision_is_named_and_the_originals_kept(
    moe: Path, root: Path, dtype: str
) -> None:
    before = weights(moe)
    message = rf"precision .*lm_head.weight \(float32, stored as {dtype}\).* and \d+ more"
    with pytest.raises(CheckpointError, match=message):
        delete(moe, root, dtype)
    assert weights(moe) == before
    assert not (moe / MOVED).exists()


def test_one_tensor_of_another_precision_is_enough(
    moe: Path, rewrite: Callable[..., None], root: Path
) -> None:
    name = "model.layers.0.block_sparse_moe.experts.3.w2.weight"
    rewrite(moe, lambda tensors: tensors | {name: tensors[name].double()})
    with pytest.raises(CheckpointError, match=rf"{name} \(float64, stored as float32\)\. "):
        delete(moe, root)
    assert list(weights(moe)) == [SAFETENSORS.single]


def test_a_tensor_that_two_shards_hold_is_named(
    moe: Path, keys_of: Callable[[Path], list[str]], root: Path
) -> None:
    name = "model.norm.weight"
    (moe / SAFETENSORS.single).rename(moe / "a.safetensors")
    save_file({name: load_file(moe / "a.safetensors")[name] + 1}, moe / "b.safetensors")
    names = dict.fromkeys(keys_of(moe / "a.safetensors"), "a.safetensors")
    (moe / SAFETENSORS.index).write_text(
        json.dumps({"weight_map": names | {name: "b.safetensors"}})
    )
    with pytest.raises(CheckpointError, match=f"same name.* {name} in a.safetensors"):
        delete(moe, root)
    assert list(weights(moe)) == ["a.safetensors", "b.safetensors"]


# what stays: the store does not hold what it should


@pytest.mark.parametrize("stem", ["model.layers.0", "model.layers.2", "resident"])
def test_a_bit_that_has_turned_in_the_store_keeps_the_originals(
    moe: Path, root: Path, stem: str
) -> None:
    store = prepared(moe).location.split(root)
    before, file = weights(moe), store / f"{stem}.safetensors"
    content = bytearray(file.read_bytes())
    content[-100] ^= 0x40
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{file} is damaged, so nothing is deleted"):
        delete(moe, root)
    assert weights(moe) == before
    assert not (moe / MOVED).exists()
    file.unlink()
    delete(moe, root)
    assert weights(moe) == {}


@pytest.mark.parametrize(
    ("stem", "name", "source"),
    [
        ("resident", "lm_head.weight", "lm_head.weight"),
        ("model.layers.1", "model.layers.1.mlp.experts.down_proj", "experts.0.w2.weight"),
    ],
)
def test_other_values_under_a_right_checksum_keep_the_originals(
    moe: Path, root: Path, stem: str, name: str, source: str
) -> None:
    store = prepared(moe).location.split(root)
    before = weights(moe)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[5] *= -1

    rewrite_store(store / f"{stem}.safetensors", change)
    with pytest.raises(CheckpointError, match=rf"{source}.* other values as {name}"):
        delete(moe, root)
    assert weights(moe) == before
    assert not (moe / MOVED).exists()


def test_what_is_computed_on_the_way_keeps_the_originals(
    moe: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = prepared(moe).location.recipes
    (recipe,) = (r for r in recipes if "model.layers.1.mlp.experts.down_proj" in r.targets)
    operation = type(recipe.converter.operations[0])
    original = operation.convert

    def halved(self: object, *arguments: object, **options: object) -> dict[str, torch.Tensor]:
        return {key: value / 2 for key, value in original(self, *arguments, **options).items()}

    monkeypatch.setattr(operation, "convert", halved)
    before = weights(moe)
    with pytest.raises(CheckpointError, match="computed from them"):
        delete(moe, root)
    assert weights(moe) == before


def test_originals_stay_when_the_store_is_not_complete(
    moe: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 0))
    with pytest.raises(BudgetError):
        delete(moe, root)
    assert (moe / SAFETENSORS.single).is_file()
    assert not (moe / MOVED).exists()


@pytest.mark.parametrize("obstacle", ["folder", "unreadable"])
def test_originals_stay_when_the_pointer_cannot_be_left(
    moe: Path, root: Path, monkeypatch: pytest.MonkeyPatch, obstacle: str
) -> None:
    before = weights(moe)
    if obstacle == "folder":
        (moe / MOVED).mkdir()
    else:
        monkeypatch.setattr("rabbitllm.checkpoint.moved.write_durably", lambda *_: None)
    with pytest.raises(OSError, match=MOVED):
        delete(moe, root)
    assert weights(moe) == before


def test_a_planted_link_is_not_written_through(moe: Path, root: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("years of work")
    (moe / f".partial-{MOVED}").symlink_to(mine)
    delete(moe, root)
    assert mine.read_text() == "years of work"


def test_a_shard_that_was_replaced_meanwhile_stays(
    moe: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replaced(*_: object) -> None:
        os.utime(moe / SAFETENSORS.single, ns=(1, 1))

    monkeypatch.setattr("rabbitllm.checkpoint.location.check_bits", replaced)
    delete(moe, root)
    assert (moe / SAFETENSORS.single).is_file()


# links, and the hub's cache


@pytest.fixture
def revisions(moe: Path, tmp_path: Path) -> list[Path]:
    """Two snapshots of a repository in a hub's cache that have their blob of weights in common."""
    cache = tmp_path / "hub" / "models--tiny--moe"
    folders = [cache / "snapshots" / name for name in ("0123", "4567")]
    (cache / "blobs").mkdir(parents=True)
    (moe / SAFETENSORS.single).rename(cache / "blobs" / "89ab")
    for folder in folders:
        shutil.copytree(moe, folder)
        (folder / SAFETENSORS.single).symlink_to("../../blobs/89ab")
    return folders


def test_a_blob_goes_with_the_last_revision_that_links_to_it(
    revisions: list[Path], root: Path, streamed: Load, prompt: torch.Tensor
) -> None:
    first, second = revisions
    blob = (first / SAFETENSORS.single).resolve()
    delete(first, root)
    assert not (first / SAFETENSORS.single).is_symlink()
    assert blob.is_file()
    expected = streamed(first)(prompt).logits
    assert torch.equal(streamed(second, layer_shards_saving_path=root)(prompt).logits, expected)
    delete(second, root)
    assert not blob.exists()
    assert torch.equal(streamed(second)(prompt).logits, expected)


def test_a_blob_stays_for_a_link_in_a_folder_below_another_revision(
    revisions: list[Path], root: Path
) -> None:
    first, second = revisions
    blob = (first / SAFETENSORS.single).resolve()
    (second / SAFETENSORS.single).unlink()
    (second / "onnx").mkdir()
    (second / "onnx" / "other-name.safetensors").symlink_to(blob)
    delete(first, root)
    assert blob.is_file()


@pytest.mark.parametrize("place", ["elsewhere.safetensors", "blobs/0123"])
def test_what_a_link_leads_out_to_stays(moe: Path, tmp_path: Path, root: Path, place: str) -> None:
    elsewhere = tmp_path / place
    elsewhere.parent.mkdir(exist_ok=True)
    (tmp_path / "models").mkdir()
    folder = moe.rename(tmp_path / "models" / "moe")  # as in the hub's cache, but it is not
    (folder / SAFETENSORS.single).rename(elsewhere)
    (folder / SAFETENSORS.single).symlink_to(elsewhere)
    before = elsewhere.read_bytes()
    delete(folder, root)
    assert elsewhere.read_bytes() == before
    assert not (folder / SAFETENSORS.single).is_symlink()


def test_a_link_to_the_checkpoints_folder_is_that_checkpoint(
    moe: Path, tmp_path: Path, root: Path
) -> None:
    (tmp_path / "link").symlink_to(moe)
    store = delete(tmp_path / "link", root)
    assert weights(moe) == {}
    prepared(moe).location.split(root)
    assert users(store) == (moe,)


# what was stopped


def test_a_deletion_that_was_stopped_is_finished(
    moe: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = weights(moe)
    with monkeypatch.context() as patch:
        patch.setattr("rabbitllm.checkpoint.deletion._delete", lambda *_: None)
        store = delete(moe, root)
    assert weights(moe) == before
    assert prepared(moe).location.moved is not None
    prepared(moe).location.locate(root, False)
    assert weights(moe) == before  # nobody asked
    delete(moe, root)
    assert weights(moe) == {}
    assert users(store) == (moe,)


@pytest.mark.parametrize("change", ["shard", "store"])
def test_what_is_not_as_it_was_shown_to_be_is_not_finished(
    moe: Path, root: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("rabbitllm.checkpoint.deletion._delete", lambda *_: None)
        store = delete(moe, root)
    if change == "shard":
        os.utime(moe / SAFETENSORS.single)
        delete(moe, root)
    else:
        file = store / "resident.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{file} is damaged"):
            delete(moe, root)
    assert (moe / SAFETENSORS.single).is_file()


def test_shards_beside_a_copied_pointer_stay(moe: Path, root: Path, tmp_path: Path) -> None:
    twin = shutil.copytree(moe, tmp_path / "twin")
    delete(moe, root)
    shutil.copy(moe / MOVED, twin / MOVED)
    delete(twin, root)
    assert (twin / SAFETENSORS.single).is_file()


# stores that another follows


def test_a_store_goes_once_another_has_followed_it(large: Path, root: Path) -> None:
    first = delete(large, root)
    second = delete(large, root, compressed=True)
    assert [found.folder for found in find_stores(root)] == [second]
    assert not first.exists()
    assert users(second) == (large,)


def test_a_copy_that_was_never_loaded_finds_the_follower(
    large: Path,
    root: Path,
    tmp_path: Path,
    streamed: Load,
    prompt: torch.Tensor,
) -> None:
    expected = streamed(large)(prompt).logits
    delete(large, root)
    copy = shutil.copytree(large, tmp_path / "copy")
    second = delete(large, root, compressed=True)
    assert torch.equal(streamed(copy)(prompt).logits, expected)
    assert sorted(users(second)) == sorted([large, copy])


def test_a_store_stays_for_a_copy_that_was_loaded(
    large: Path, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = delete(large, root)
    copy = shutil.copytree(large, tmp_path / "copy")
    prepared(copy).location.locate(root, False)
    before = weights(first)
    delete(large, root, compressed=True)
    assert weights(first) == before
    assert f"{first} stays" in caplog.text
    assert f"{copy} still has its weights there" in caplog.text
    assert users(first) == (copy,)
    delete(copy, root, compressed=True)  # made for the other folder: it is not this one's to delete
    assert weights(first) == before
    assert main(["cache", "rm", first.name, "--store", str(root)]) == 0
    assert not first.exists()


def test_a_store_stays_for_a_folder_that_is_not_there_now(
    large: Path, root: Path, tmp_path: Path, streamed: Load
) -> None:
    store = delete(large, root)
    moved = large.rename(tmp_path / "elsewhere")
    assert main(["cache", "rm", store.name, "--store", str(root)]) == 2
    assert users(store) == (large,)
    streamed(moved)
    assert sorted(users(store)) == sorted([moved, large])


def test_a_store_stays_that_a_follower_in_another_place_has_followed(
    large: Path, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = delete(large, root)
    delete(large, tmp_path / "others", compressed=True)
    assert weights(first)
    assert "copies of the checkpoint's folder may still read it" in caplog.text


def test_a_damaged_store_is_not_followed(large: Path, root: Path) -> None:
    first = delete(large, root)
    file = first / "model.layers.0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    before = weights(first)
    with pytest.raises(CheckpointError, match=f"{file} is damaged"):
        delete(large, root, compressed=True)
    assert weights(first) == before
    assert json.loads((large / MOVED).read_text()) == {"store": str(first)}


# what a checkpoint's folder brings along


@pytest.fixture
def planted(large: Path, tmp_path: Path) -> Path:
    """A stranger's folder, of the same architecture but without weights."""
    folder = tmp_path / "planted"
    shutil.copytree(large, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def test_a_planted_pointer_deletes_no_store(large: Path, root: Path, planted: Path) -> None:
    # The originals are there, so nobody is in its records.
    plain = prepared(large).location.split(root)
    (planted / MOVED).write_text(json.dumps({"store": str(plain)}))
    before = weights(plain)
    delete(planted, root, compressed=True)
    assert weights(plain) == before
    assert describe(plain).complete


def test_a_planted_pointer_deletes_no_folder(
    large: Path, root: Path, planted: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    thesis = root / "thesis"
    shutil.copytree(prepared(large).location.split(tmp_path / "others"), thesis)
    (thesis / "chapter.txt").write_text("years of work")
    fields = json.loads((thesis / DESCRIPTION).read_text())
    (thesis / DESCRIPTION).write_text(json.dumps(fields | {"checkpoint": str(planted)}))
    (planted / MOVED).write_text(json.dumps({"store": str(thesis)}))
    before = weights(thesis)
    delete(planted, root, compressed=True)
    assert weights(thesis) == before
    assert (thesis / "chapter.txt").read_text() == "years of work"
    assert f"{thesis} stays" in caplog.text


def test_what_is_no_stores_stays_in_its_folder(
    large: Path, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = delete(large, root)
    (first / "notes.txt").write_text("mine")
    save_file({"mine": torch.ones(3)}, first / "mine.safetensors")
    with caplog.at_level(logging.WARNING):
        delete(large, root, compressed=True)
    assert sorted(path.name for path in first.iterdir()) == ["mine.safetensors", "notes.txt"]
    assert f"{first} stays" in caplog.text


def test_files_of_a_store_that_are_links_are_not_followed(
    large: Path, root: Path, tmp_path: Path
) -> None:
    first = delete(large, root)
    elsewhere = tmp_path / "elsewhere.safetensors"
    (first / "resident.safetensors").rename(elsewhere)
    (first / "resident.safetensors").symlink_to(elsewhere)
    delete(large, root, compressed=True)
    assert not first.exists()
    assert elsewhere.is_file()


def test_another_process_that_was_faster_is_no_error(
    moe: Path,
    root: Path,
    streamed: Load,
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = streamed(moe, layer_shards_saving_path=root)(prompt).logits

    def late(*arguments: Any) -> None:
        monkeypatch.undo()
        delete(moe, root)
        replace_originals(*arguments)

    monkeypatch.setattr("rabbitllm.checkpoint.location.replace_originals", late)
    delete(moe, root)
    assert torch.equal(streamed(moe)(prompt).logits, expected)
    (store,) = root.iterdir()
    assert [path.name for path in store.glob(f"{USED_BY}*")]
    assert (store / LOCK).exists()
