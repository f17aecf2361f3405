from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
from collections import namedtuple
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from multiprocessing.synchronize import Event
from pathlib import Path

import filelock
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from rabbitllm import BudgetError, StreamedModel
from rabbitllm.checkpoint import store as store_module
from rabbitllm.checkpoint import store_file
from rabbitllm.checkpoint.moved import DESCRIPTION
from rabbitllm.utils import find_or_create_local_splitted_path
from tests.patience import PATIENCE

Usage = namedtuple("Usage", "total used free")
STAGES = 4 + 1
"""Files of a mixtral store: four layers, and what is resident."""


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    """Starts processes from one that has the engine loaded, so that each costs milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rabbitllm.prepare", "pytest"])
    return context


def split(folder: Path, root: Path, **options: object) -> Path:
    return find_or_create_local_splitted_path(folder, root, **options)[1]


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.glob("*.safetensors")}


def identities(store: Path) -> dict[str, tuple[int, int]]:
    """What a rewritten file would change."""
    files = store.glob("*.safetensors")
    return {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_store_holds_the_parameters_that_transformers_loads(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    tmp_path: Path,
    dtype: str,
) -> None:
    store = split(checkpoint("mixtral"), tmp_path, dtype=dtype)
    expected = stock(checkpoint("mixtral"), dtype=dtype).state_dict()
    found: dict[str, torch.Tensor] = {}
    for file in store.glob("*.safetensors"):
        held = load_file(file)
        assert file.stem == "resident" or all(name.startswith(file.stem) for name in held)
        assert found.keys().isdisjoint(held)
        found |= held
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype


def test_a_store_is_filled_once(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel], tmp_path: Path
) -> None:
    options = {"dtype": "bfloat16", "layer_shards_saving_path": tmp_path}
    streamed(checkpoint("mixtral"), **options)
    (store,) = tmp_path.iterdir()
    before = identities(store)
    assert len(before) >= STAGES
    streamed(checkpoint("mixtral"), **options)
    assert split(checkpoint("mixtral"), tmp_path, dtype="bfloat16") == store
    assert identities(store) == before
    assert list(tmp_path.iterdir()) == [store]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs procfs")
def test_a_file_is_flushed_before_it_has_its_name(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed = []

    def sync(descriptor: int) -> None:
        flushed.append(Path(f"/proc/self/fd/{descriptor}").resolve().name)

    monkeypatch.setattr(os, "fsync", sync)
    store = split(checkpoint("mixtral"), tmp_path)
    for name in (DESCRIPTION, *(file.stem for file in store.glob("*.safetensors"))):
        assert f".partial-{name}" in flushed


def test_a_checkpoint_readable_in_place_has_no_store(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel], tmp_path: Path
) -> None:
    folder = checkpoint("llama")
    streamed(folder, layer_shards_saving_path=tmp_path, delete_original=True)
    assert list(tmp_path.iterdir()) == []
    assert (folder / "model.safetensors").is_file()


def test_a_whole_store_may_lie_where_nobody_can_write(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = split(checkpoint("mixtral"), tmp_path)
    before = identities(store)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(store_module, "FileLock", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert split(checkpoint("mixtral"), tmp_path) == store
    assert identities(store) == before


def test_a_folder_that_cannot_be_made_names_the_way_out(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=rf"made in {tmp_path}/file/mixtral.*layer_shards_saving_pa"):
        split(checkpoint("mixtral"), tmp_path / "file")


def test_each_dtype_has_its_own_store(checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    stores = [split(checkpoint("mixtral"), tmp_path, dtype=d) for d in ("float32", "bfloat16")]
    assert len(set(stores)) == 2
    assert split(checkpoint("mixtral"), tmp_path) == stores[0]


def test_another_checkpoint_in_the_same_place_has_its_own_store(
    copied: Callable[..., Path], rewrite: Callable[..., None], tmp_path: Path
) -> None:
    folder = copied("mixtral")
    before = split(folder, tmp_path / "stores")
    name = "model.norm.weight"
    rewrite(folder, lambda tensors: tensors | {name: tensors[name] + 1})
    after = split(folder, tmp_path / "stores")
    assert after != before
    assert contents(after) != contents(before)


# interruptions


def fill_and_die(folder: Path, root: Path, whole: int, torn: bool) -> None:
    """Fills a store up to `whole` files, half of another if `torn`, and is killed."""
    saved = 0

    def save(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        nonlocal saved
        if saved < whole or torn:
            save_file(tensors, file, metadata)
        if saved == whole:
            if torn:
                os.truncate(file, file.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        saved += 1

    torch.set_num_threads(1)
    store_file.save_file = save
    split(folder, root)


@pytest.mark.parametrize(("whole", "torn"), [(0, False), (0, True), (2, True), (4, False)])
def test_a_killed_fill_goes_on_where_it_stopped(
    checkpoint: Callable[..., Path],
    context: ForkServerContext,
    tmp_path: Path,
    whole: int,
    torn: bool,
) -> None:
    folder = checkpoint("mixtral")
    process = context.Process(target=fill_and_die, args=(folder, tmp_path / "a", whole, torn))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    (store,) = (tmp_path / "a").iterdir()
    before = identities(store)
    assert len(before) == whole
    assert len(list(store.glob(".partial-*"))) == torn
    assert split(folder, tmp_path / "a") == store
    after = identities(store)
    assert {name: after[name] for name in before} == before
    assert list(store.glob(".partial-*")) == []
    assert contents(store) == contents(split(folder, tmp_path / "b"))


def fill_slowly(folder: Path, root: Path, inside: Event, blocked: Event) -> None:
    """Fills a store, and stops at the first file until another process waits for it."""

    def save(tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str]) -> None:
        inside.set()
        assert blocked.wait(PATIENCE)
        save_file(tensors, file, metadata)

    torch.set_num_threads(1)
    store_file.save_file = save
    split(folder, root)


def fill_second(folder: Path, root: Path, inside: Event, blocked: Event) -> None:
    """Fills the same store; fails if it need not wait or writes anything."""

    class Lock(filelock.FileLock):
        def __enter__(self) -> Lock:
            try:
                self.acquire(blocking=False)
            except filelock.Timeout:
                blocked.set()
                self.acquire(poll_interval=0.01)
            return self

    def save(*_: object) -> None:
        raise AssertionError("written twice")

    torch.set_num_threads(1)
    store_module.FileLock = Lock
    store_file.save_file = save
    assert inside.wait(PATIENCE)
    split(folder, root)
    assert blocked.is_set()


def test_of_two_processes_one_fills_and_the_other_waits(
    checkpoint: Callable[..., Path], context: ForkServerContext, tmp_path: Path
) -> None:
    inside, blocked = context.Event(), context.Event()
    arguments = (checkpoint("mixtral"), tmp_path / "a", inside, blocked)
    processes = [context.Process(target=f, args=arguments) for f in (fill_slowly, fill_second)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    (store,) = (tmp_path / "a").iterdir()
    assert contents(store) == contents(split(checkpoint("mixtral"), tmp_path / "b"))


# damage


@pytest.mark.parametrize("text", ["", "{}", '{"format": 3}'])
def test_a_damaged_description_is_made_again(
    checkpoint: Callable[..., Path], tmp_path: Path, text: str
) -> None:
    store = split(checkpoint("mixtral"), tmp_path)
    before, good = identities(store), (store / DESCRIPTION).read_text()
    (store / DESCRIPTION).write_text(text)
    assert split(checkpoint("mixtral"), tmp_path) == store
    assert (store / DESCRIPTION).read_text() == good
    assert identities(store) == before


@pytest.mark.parametrize("damage", ["truncated", "garbage", "gone", "dtype", "shape", "names"])
def test_a_damaged_file_is_made_again(
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    store = split(checkpoint("mixtral"), tmp_path)
    before, good = identities(store), contents(store)
    file = store / "model.layers.2.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1)
    if damage == "truncated":
        os.truncate(file, file.stat().st_size - 1)
    elif damage == "garbage":
        file.write_bytes(b"\xff" * file.stat().st_size)
    elif damage == "gone":
        file.unlink()
    elif damage == "dtype":
        save_file(tensors | {name: tensors[name].half()}, file)
    elif damage == "shape":
        save_file(tensors | {name: tensors[name].flatten()}, file)
    else:
        save_file({name: tensors[name]}, file)
    assert split(checkpoint("mixtral"), tmp_path) == store
    assert contents(store) == good
    after = identities(store)
    assert {n for n in before if before[n] != after[n]} <= {file.name}
    if damage in ("truncated", "garbage"):
        assert f"{file}" in caplog.text
        assert "It has to be made again." in caplog.text


# space


def test_too_little_space_is_an_error_before_anything_is_written(
    checkpoint: Callable[..., Path],
    tmp_path: Path,
    streamed: Callable[..., StreamedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 123 * 2**10))
    message = r"needs \d+\.\d\d MiB in .*where 123\.00 KiB are free.*layer_shards_saving_path"
    with pytest.raises(BudgetError, match=message):
        streamed(checkpoint("mixtral"), dtype="bfloat16", layer_shards_saving_path=tmp_path)
    assert {file.name for file in tmp_path.rglob("*") if file.is_file()} <= {".lock"}


def test_only_what_is_missing_needs_space(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = split(checkpoint("mixtral"), tmp_path)
    size = (store / "model.layers.0.safetensors").stat().st_size
    room = size + store_module.HEADER_ROOM
    (store / "model.layers.0.safetensors").unlink()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, room // 2))
    with pytest.raises(BudgetError):
        split(checkpoint("mixtral"), tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, room))
    split(checkpoint("mixtral"), tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 0))
    assert split(checkpoint("mixtral"), tmp_path) == store


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 900 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(place)]
    if os.name != "posix" or os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs leave to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_leaves_whole_files_and_is_gone_on_from(
    checkpoint: Callable[..., Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**9, 0, 10**9))
    message = r"small/mixtral.*/model\.layers\.\d\.safetensors could not be written: .*No space"
    with pytest.raises(OSError, match=message):
        split(checkpoint("mixtral"), small_disk)
    (store,) = small_disk.iterdir()
    before = identities(store)
    assert 0 < len(before) < STAGES
    assert list(store.glob(".partial-*")) == []
    subprocess.run(["mount", "-o", "remount,size=9m", str(small_disk)], check=True)
    assert split(checkpoint("mixtral"), small_disk) == store
    after = identities(store)
    assert len(after) > len(before)
    assert {name: after[name] for name in before} == before
