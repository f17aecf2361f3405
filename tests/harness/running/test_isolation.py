from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.records.record import DEEPEST
from harness.running import isolation
from harness.running.cell import cause_of_death
from harness.running.isolation import OUTPUT, isolated
from tests.patience import PATIENCE


@dataclass(frozen=True)
class Answer:
    text: str
    pid: int


@dataclass(frozen=True)
class Nested:
    inner: list[Any] = field(default_factory=list)


def answer(text: str) -> Answer:
    return Answer(text, os.getpid())


def segfault() -> None:
    print("last words", file=sys.stderr, flush=True)
    signal.raise_signal(signal.SIGSEGV)  # in this thread: another one might outlive it


def hang() -> None:
    while True:
        time.sleep(60)


def hang_for_good() -> None:
    faulthandler.cancel_dump_traceback_later()
    hang()


def leave() -> None:
    os._exit(7)


def raises() -> None:
    raise LookupError("nothing there")


def write_much(mebibytes: int) -> Answer:
    block = b"x" * (1 << 20)
    for _ in range(mebibytes):
        os.write(1, block)
    os.write(2, b"\nlast words\n")
    return Answer("written", os.getpid())


def close_everything() -> Answer:
    os.closerange(0, 256)
    return Answer("", 0)


def close_output() -> Answer:
    os.close(1)
    os.close(2)
    return Answer("silent", os.getpid())


def fork() -> Answer:
    os.fork()
    return Answer("forked", os.getpid())


def answer_deeply(levels: int) -> Nested:
    inner: list[Any] = []
    for _ in range(levels):
        inner = [inner]
    return Nested(inner)


def send(text: str) -> None:
    """Send what is no answer, through the pipe of the one that called this."""
    with (
        sys._getframe(1).f_locals["answer"] as pipe,
        open(pipe.fileno(), "wb", closefd=False) as to,
    ):
        to.write(text.encode())
    os._exit(0)


def abandon(file: str, then: str) -> Answer:
    """Leave a process behind that is nobody's child, in a session of its own; then end."""
    read, write = os.pipe()
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path(file).write_text(str(os.getpid()))
        os.write(write, b"x")
        hang()
    os.read(read, 1)
    if then == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if then == "hang":
        hang_for_good()
    return Answer("done", os.getpid())


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_value_comes_back_from_another_process():
    ended = isolated(answer, ("é\ud800",), PATIENCE)
    assert ended.value is not None
    assert ended.value["text"] == "é?"
    assert ended.value["pid"] != os.getpid()
    assert ended.exit_code == 0
    assert ended.cpu_seconds > 0


def test_a_crash_is_named_by_its_signal_and_keeps_the_last_words():
    ended = isolated(segfault, (), PATIENCE)
    assert ended.value is None
    assert ended.exit_code == -signal.SIGSEGV
    assert "last words" in ended.stderr
    assert "in segfault" in ended.stderr
    assert cause_of_death(ended, PATIENCE)[:2] == ("crash", "SIGSEGV")


def test_a_hang_is_stopped_and_says_where(monkeypatch):
    monkeypatch.setattr(isolation, "GRACE", PATIENCE)
    ended = isolated(hang, (), 1)
    assert ended.value is None
    assert ended.exit_code == 1  # by itself
    assert "in hang" in ended.stderr
    assert cause_of_death(ended, 1)[:2] == ("timeout", "Timeout")


def test_a_hang_that_cannot_stop_itself_is_killed(monkeypatch):
    monkeypatch.setattr(isolation, "GRACE", 0.5)
    ended = isolated(hang_for_good, (), 1)
    assert ended.exit_code is None
    assert cause_of_death(ended, 1)[0] == "timeout"


def test_an_exit_without_a_result_is_a_crash():
    ended = isolated(leave, (), PATIENCE)
    assert cause_of_death(ended, PATIENCE) == (
        "crash",
        "Exit",
        "the process ended with exit code 7 and no result",
    )


def test_an_exception_outside_the_checks_is_a_crash_with_its_traceback():
    ended = isolated(raises, (), PATIENCE)
    assert cause_of_death(ended, PATIENCE)[0] == "crash"
    assert "LookupError: nothing there" in ended.stderr


@pytest.mark.parametrize(("then", "exit_code"), [("return", 0), ("crash", -signal.SIGKILL)])
def test_what_a_process_abandons_ends_with_it(tmp_path, then, exit_code):
    file = tmp_path / "pid"
    assert isolated(abandon, (str(file), then), PATIENCE).exit_code == exit_code
    assert not psutil.pid_exists(int(file.read_text()))


def test_what_a_process_abandons_ends_when_it_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(isolation, "GRACE", 1)
    file = tmp_path / "pid"
    for limit in (1, 10, 100):  # on a busy machine it needs longer to come so far
        assert isolated(abandon, (str(file), "hang"), limit).exit_code is None
        if file.exists() and file.read_text():
            break
    end = time.monotonic() + PATIENCE
    while alive(int(file.read_text())):
        assert time.monotonic() < end
        time.sleep(0.01)


def test_of_much_output_the_end_is_kept():
    ended = isolated(write_much, (64,), PATIENCE)
    assert ended.value is not None
    assert ended.stderr.endswith("x\nlast words\n")
    assert len(ended.stderr) <= OUTPUT


def test_a_process_may_close_its_output():
    ended = isolated(close_output, (), PATIENCE)
    assert ended.exit_code == 0
    assert ended.value is not None
    assert ended.stderr == ""


def test_a_process_that_closes_everything_has_no_result():
    ended = isolated(close_everything, (), PATIENCE)
    assert cause_of_death(ended, PATIENCE)[0] == "crash"


def test_of_a_process_that_forks_the_first_answers():
    ended = isolated(fork, (), PATIENCE)
    assert ended.value is not None
    assert ended.value["text"] == "forked"


def test_an_answer_that_is_too_deep_costs_its_process_alone():
    ended = isolated(answer_deeply, (100_000,), PATIENCE)
    assert cause_of_death(ended, PATIENCE)[:2] == ("crash", "Exit")
    assert "RecursionError" in ended.stderr
    shallow = isolated(answer_deeply, (DEEPEST // 2,), PATIENCE)
    assert shallow.exit_code == 0
    assert shallow.value is not None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested deeper than"),
        ('{"value": {}, "cpu_seconds": 1', "Expecting"),
        ('{"value": {}, "cpu_seconds": 1}{}', "Extra data"),
        ('{"value": [], "cpu_seconds": 1}', "its answer: value: expected"),
        ('{"value": {}, "cpu_seconds": 1' + "0" * 400 + "}", "its answer: cpu_seconds: expected"),
        ('{"value": {}, "cpu_seconds": 1' + "0" * 5_000 + "}", "digits"),
        ("[]", "its answer: expected a table"),
    ],
)
def test_what_is_no_answer_is_a_crash_that_says_why(text, reason):
    ended = isolated(send, (text,), PATIENCE)
    assert ended.value is None
    status, _, message = cause_of_death(ended, PATIENCE)
    assert status == "crash"
    assert message.startswith("the process ended with exit code 0 and what is no result (")
    assert reason in message
    assert len(message) < 3_000
