"""What numba compiled is kept where it can be; what is damaged there is compiled again."""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

pytest.importorskip("numba", reason="the extra `numba` is not installed")

from numba.core import caching, config

from rabbitllm.checkpoint.codecs import kept_code

SOURCE = """
from numba import njit
from rabbitllm.checkpoint.codecs.kept_code import keep
made = keep(njit(lambda a: a + {added}))
"""


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    """As in a process that has said nothing yet."""
    for said in (kept_code._warn, kept_code._say_that_it_takes_time):
        said.cache_clear()
    yield
    for said in (kept_code._warn, kept_code._say_that_it_takes_time):
        said.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is compiled is kept."""
    there = tmp_path / "kept"
    monkeypatch.setattr(config, "CACHE_DIR", str(there))
    return there


@pytest.fixture
def start(
    tmp_path: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., Any]:
    """A function as a process that starts has it, whatever ran in this one."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # sources of one second look alike
    caplog.set_level(logging.WARNING, logger=kept_code.logger.name)

    def imported(added: int = 1) -> Any:
        path = tmp_path / "some_loops.py"
        path.write_text(SOURCE.format(added=added))
        spec = importlib.util.spec_from_file_location("some_loops", path)
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "some_loops", module)
        spec.loader.exec_module(module)
        return module.made

    return imported


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def was_kept(function: Any) -> bool:
    """Whether a function that was called did not have to be compiled."""
    return bool(function.stats.cache_hits and not function.stats.cache_misses)


def test_it_is_compiled_once(start: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=kept_code.logger.name)
    first = start()
    assert first(2) == 3
    assert caplog.messages == ["Compiling loops: some seconds, once"]
    again = start()
    assert again(2) == 3
    assert not was_kept(first)
    assert was_kept(again)
    assert len(caplog.messages) == 1


def test_another_version_of_the_source_is_compiled(start: Callable[..., Any]) -> None:
    assert start(added=1)(2) == 3
    other = start(added=5)
    assert other(2) == 7
    assert not was_kept(other)


def test_code_of_another_numba_is_not_read(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert start()(2) == 3
    monkeypatch.setattr(kept_code, "VERSIONS", ("0.1", "0.1"))
    other = start()
    assert other(2) == 3
    assert not was_kept(other)
    assert not caplog.messages


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "a part": lambda data: data[: len(data) // 2],
    "a digest alone": lambda data: data[: kept_code.DIGEST],
    "zeros": lambda data: bytes(len(data)),
    "garbage": lambda data: b"garbage" * 100,
    "a bit": flipped,
    "more": lambda data: data + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_is_compiled_again_and_replaced(
    damage: str, start: Callable[..., Any], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert start()(2) == 3
    (file,) = kept(folder)
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    mended = start()
    assert mended(2) == 3
    assert not was_kept(mended)
    (said,) = caplog.messages
    assert f"is damaged in {file.parent}" in said
    assert "NUMBA_CACHE_DIR" in said
    again = start()
    assert again(2) == 3
    assert was_kept(again)


def test_what_cannot_be_read_is_compiled_again(
    start: Callable[..., Any], folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert start()(2) == 3
    (file,) = kept(folder)
    file.unlink()
    file.mkdir()
    assert start()(2) == 3
    read, written = caplog.messages
    assert f"cannot be read in {file.parent} ({os.strerror(errno.EISDIR)})" in read
    assert f"cannot be kept in {file.parent}" in written
    assert [path for path in file.parent.iterdir() if path != file] == []


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_where_nothing_can_be_written_it_is_compiled_all_the_same(
    error: int,
    start: Callable[..., Any],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*arguments: object) -> NoReturn:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "replace", full)
    function = start()
    assert function(2) == 3
    assert function(2.5) == 3.5
    (said,) = caplog.messages
    assert f"cannot be kept in {folder}" in said
    assert os.strerror(error) in said
    assert kept(folder) == []


def test_where_there_is_no_folder_it_is_compiled_all_the_same(
    start: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])
    assert start()(2) == 3
    assert start()(2) == 3
    (said,) = caplog.messages
    assert f"is not kept, since neither {tmp_path / '__pycache__'} nor the user's" in said
    assert "NUMBA_CACHE_DIR" in said


def test_an_interrupt_while_it_compiles_leaves_a_function_that_works(
    start: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> NoReturn:
        raise KeyboardInterrupt

    function = start()
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            function(2)
    assert kept(folder) == []
    with monkeypatch.context() as patch:
        patch.setattr(function._compiler, "compile", interrupted)
        with pytest.raises(KeyboardInterrupt):
            function(2.5)
    assert function(2) == 3
    assert function(2.5) == 3.5


CALLER = """
import sys
sys.path.append(sys.argv[1])
from some_loops import made
print("ready", flush=True)
sys.stdin.readline()
print(made(2), flush=True)
"""


def process(sources: Path, folder: Path) -> subprocess.Popen[str]:
    """One that calls the function when it is told to."""
    started = subprocess.Popen(
        [sys.executable, "-c", CALLER, str(sources)],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert started.stdout
    assert started.stdout.readline() == "ready\n"
    return started


def test_processes_may_compile_at_once_and_be_killed(
    start: Callable[..., Any], tmp_path: Path, folder: Path
) -> None:
    start()
    several = [process(tmp_path, folder) for _ in range(3)]
    for each in several:
        assert each.stdin
        each.stdin.write("\n")
        each.stdin.flush()
    killed, *others = several
    while killed.poll() is None and not kept(folder):  # as early as there is something to damage
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [each.communicate()[0] for each in others] == ["3\n", "3\n"]
    function = start()
    assert function(2) == 3
    assert was_kept(function)
