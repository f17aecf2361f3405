"""`delete_original` when the power goes, or the process is killed, at any moment."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import product
from multiprocessing.context import ForkServerContext
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from rabbitllm.checkpoint import deletion, durable, inventory, moved, store, store_file
from rabbitllm.checkpoint.moved import DESCRIPTION, MOVED
from rabbitllm.prepare import prepare

PLACES = {
    os.path.realpath(m.__file__) for m in (deletion, durable, moved, store, store_file, inventory)
}
MOST = 256
"""Outcomes that are tried of a loss of power at one moment."""
LOADED = 12
"""Outcomes that are loaded, of those that are whole."""

Node = bytes | str | dict[str, int]
"""A file's content, a link's target, or a folder's names and the inodes that they stand for."""
Tree = dict[str, bytes | str | None]
"""Path -> content, target, or None for a folder."""


def delete(folder: Path, root: Path, compressed: bool = False) -> None:
    """Puts a layer store in the place of a checkpoint's shards."""
    prepared = prepare(folder, None, torch.device("cpu"), "auto", "auto", False)
    prepared.location.locate(root, True, "lossless" if compressed else None)


@cache
def is_place(file: str) -> bool:
    return os.path.realpath(file) in PLACES


@contextmanager
def lines_seen(see: Callable[[], None]) -> Iterator[None]:
    """Calls `see` before each line of `PLACES`."""

    def step(frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        if event in ("line", "return"):
            see()
        return step

    def enter(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        return step if is_place(frame.f_code.co_filename) else None

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        yield
    finally:
        sys.settrace(before)


class Disk:
    """What of a folder would be left by a loss of power: whatever was flushed, the rest by chance.

    Each name in a folder, and each file's content, is lost or kept by itself, as if the file system
    kept no order between them. Half of a content may be there as well.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.outcomes: dict[frozenset[tuple[str, bytes | str | None]], None] = {}
        self.moments = 0
        self._held: dict[int, int] = {}  # descriptors, so that no inode's number is used again
        self._random = random.Random(0)
        self._signature: object = None
        self._live = self._read()
        self._flushed = dict(self._live)

    def close(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)

    def see(self) -> None:
        """Adds what a loss of power at this moment can leave."""
        signature = self._look()
        if signature == self._signature:
            return
        self._signature = signature
        self._live = self._read()
        self.moments += 1
        self._add_outcomes()

    def flush(self, descriptor: int) -> None:
        self.see()
        inode = os.fstat(descriptor).st_ino
        if inode in self._live:
            self._flushed[inode] = self._live[inode]
        self._signature = None
        self.see()

    def _look(self) -> object:
        return [
            (path, stat.st_ino, stat.st_size, stat.st_mtime_ns)
            for path in sorted(self.root.rglob("*"))
            for stat in (path.lstat(),)
        ]

    def _read(self) -> dict[int, Node]:
        nodes: dict[int, Node] = {}
        for path in [self.root, *self.root.rglob("*")]:
            inode = path.lstat().st_ino
            if inode not in self._held and not path.is_symlink():
                self._held[inode] = os.open(path, os.O_RDONLY)
            if path.is_symlink():
                nodes[inode] = os.readlink(path)
            elif path.is_dir():
                nodes[inode] = {child.name: child.lstat().st_ino for child in path.iterdir()}
            else:
                nodes[inode] = path.read_bytes()
        return nodes

    def _add_outcomes(self) -> None:
        choices: dict[tuple[int, str], list[Any]] = {}
        for inode, node in self._live.items():
            kept = self._flushed.get(inode)
            if kept == node:
                continue
            if isinstance(node, dict):
                old = kept if isinstance(kept, dict) else {}
                for name in sorted(old.keys() | node.keys()):
                    if old.get(name) != node.get(name):
                        choices[inode, name] = [old.get(name), node.get(name)]
            elif isinstance(node, bytes):
                choices[inode, ""] = [kept or b"", node[: len(node) // 2], node]
        for picked in self._some(list(choices.values())):
            outcome: Tree = {}
            self._build(
                self.root.stat().st_ino, "", dict(zip(choices, picked, strict=True)), outcome
            )
            self.outcomes[frozenset(outcome.items())] = None

    def _some(self, choices: list[list[Any]]) -> Iterator[tuple[Any, ...]]:
        count = 1
        for options in choices:
            count *= len(options)
        if count <= MOST:
            yield from product(*choices)
            return
        yield tuple(options[0] for options in choices)
        yield tuple(options[-1] for options in choices)
        for _ in range(MOST):
            yield tuple(self._random.choice(options) for options in choices)

    def _build(
        self, inode: int, path: str, picked: Mapping[tuple[int, str], Any], outcome: Tree
    ) -> None:
        node = self._live.get(inode, self._flushed.get(inode, b""))
        if not isinstance(node, dict):
            outcome[path] = picked.get((inode, ""), node)
            return
        outcome[path] = None
        flushed = self._flushed.get(inode)
        names = node | (flushed if isinstance(flushed, dict) else {})
        for name in names:
            child = picked.get((inode, name), node.get(name))
            if child is not None:
                self._build(child, f"{path}/{name}", picked, outcome)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Callable[[], None]], Disk]:
    """`cut(folder, run)` -> what losses of power while `run` runs would leave of a folder."""

    def outcomes(folder: Path, run: Callable[[], None]) -> Disk:
        disk = Disk(folder)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", disk.flush)
            with lines_seen(disk.see):
                run()
            disk.see()
        disk.close()
        return disk

    return outcomes


def contents(folder: Path, root: Path) -> dict[str, bytes]:
    files = sorted(folder.rglob("*.safetensors"))
    return {"/" + str(file.relative_to(root)): file.read_bytes() for file in files}


def is_whole(outcome: Tree, root: Path, folder: Path, good: Mapping[str, bytes]) -> bool:
    """Whether the checkpoint's folder leads to all of its weights.

    Args:
        outcome: what is left below `root`.
        root: the folder that was watched.
        folder: the checkpoint's, in there.
        good: what the files of weights hold, before and afterwards.
    """
    place = "/" + str(folder.relative_to(root))
    pointer = outcome.get(f"{place}/{MOVED}")
    if pointer is None:
        needed = [path for path in good if path.startswith(place + "/")]
    else:
        named = Path(json.loads(pointer)["store"])
        place = "/" + str(named.relative_to(root))
        description = outcome.get(f"{place}/{DESCRIPTION}")
        if not description:
            return False
        needed = [f"{place}/{stem}.safetensors" for stem in json.loads(description)["holds"]]
    return bool(needed) and all(outcome.get(path) == good[path] for path in needed)


def restore(outcome: Tree, root: Path) -> None:
    shutil.rmtree(root)
    for path, content in sorted(outcome.items()):
        if content is None:
            (root / path.lstrip("/")).mkdir()
        elif isinstance(content, bytes):
            (root / path.lstrip("/")).write_bytes(content)
        else:
            (root / path.lstrip("/")).symlink_to(content)


def loaded(folder: Path, root: Path) -> dict[str, torch.Tensor]:
    """What a checkpoint's folder loads as, deleting afresh."""
    delete(folder, root)
    prepared = prepare(folder, None, torch.device("cpu"), "auto", "auto", False)
    assert prepared.location.moved is not None
    assert not list(folder.glob("*.safetensors"))
    return {k: t for file in prepared.location.moved.held for k, t in load_file(file).items()}


def check_outcomes(disk: Disk, folder: Path, root: Path, good: Mapping[str, bytes]) -> None:
    expected = loaded(folder, root)
    outcomes = [dict(outcome) for outcome in disk.outcomes]
    lost = [outcome for outcome in outcomes if not is_whole(outcome, disk.root, folder, good)]
    assert lost == []
    for outcome in random.Random(0).sample(outcomes, min(LOADED, len(outcomes))):
        restore(outcome, disk.root)
        found = loaded(folder, root)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_every_loss_of_power_leaves_a_whole_copy(
    copied: Callable[..., Path],
    cut: Callable[[Path, Callable[[], None]], Disk],
    tmp_path: Path,
) -> None:
    folder, root = copied("mixtral"), tmp_path / "newly" / "made" / "stores"
    good = contents(folder, tmp_path)
    disk = cut(tmp_path, lambda: delete(folder, root))
    assert not list(folder.glob("*.safetensors"))
    assert disk.moments > 30
    assert len(disk.outcomes) > 50
    check_outcomes(disk, folder, root, good | contents(root, tmp_path))


def test_every_loss_of_power_leaves_one_of_two_stores(
    build: Callable[..., PreTrainedModel],
    cut: Callable[[Path, Callable[[], None]], Disk],
    tmp_path: Path,
) -> None:
    folder, root = tmp_path / "checkpoint", tmp_path / "stores"
    fields = {"hidden_size": 256, "intermediate_size": 288, "num_hidden_layers": 1}
    build("mixtral", torch.bfloat16, num_local_experts=1, **fields).save_pretrained(folder)
    delete(folder, root)
    good = contents(root, tmp_path)
    disk = cut(tmp_path, lambda: delete(folder, root, compressed=True))
    (last,) = root.iterdir()
    assert disk.moments > 20
    good |= contents(last, tmp_path)
    lost = [o for o in map(dict, disk.outcomes) if not is_whole(o, tmp_path, folder, good)]
    assert lost == []


# the process


def delete_and_die(folder: Path, root: Path, at: int) -> None:
    """Is killed before line number `at` of `PLACES`; counts them into a file if it gets so far."""
    count = 0

    def see() -> None:
        nonlocal count
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    torch.set_num_threads(1)
    with lines_seen(see):
        delete(folder, root)
    (root / "lines").write_text(str(count))


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    modeling = "transformers.models.mixtral.modeling_mixtral"
    context.set_forkserver_preload(["rabbitllm.prepare", "pytest", modeling])
    return context


def test_a_kill_at_any_line_leaves_a_whole_copy(
    checkpoint: Callable[..., Path], context: ForkServerContext, tmp_path: Path
) -> None:
    folder, root = tmp_path / "checkpoint", tmp_path / "stores"

    def run(at: int) -> int | None:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(checkpoint("mixtral"), folder)
        process = context.Process(target=delete_and_die, args=(folder, root, at))
        process.start()
        process.join()
        return process.exitcode

    assert run(-1) == 0
    lines = int((root / "lines").read_text())
    expected = loaded(folder, root)
    for at in random.Random(0).sample(range(lines), 8):
        assert run(at) == -signal.SIGKILL
        found = loaded(folder, root)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
