"""Calls a function in a process of its own, which leaves nothing behind, however it ends.

Between the caller and that process, the worker, stands a guard. It adopts whatever the worker
starts and abandons, in sessions of its own too, ends it with the worker, and then ends as the
worker did. Answer and output come through pipes: there is no log to fill the disk or to remove.
"""

from __future__ import annotations

import ctypes
import faulthandler
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import psutil

from harness.records import parse, to_json
from harness.records.failure import tail
from harness.running.pipes import descriptor, one_way
from harness.tables import build

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

GRACE = 5.0
"""Seconds beyond the limit in which the process may still end by itself and say where it hung."""
OUTPUT = 4_000
"""Characters of the end of what a process wrote that are kept."""
LONGEST_OUTPUT = 1 << 16
"""Bytes of it that are looked at."""
LONGEST_ANSWER = 1 << 24
"""Bytes; the answer of a cell has some thousands."""
PR_SET_PDEATHSIG = 1
"""Of Linux: the process gets a signal when its parent ends."""
PR_SET_CHILD_SUBREAPER = 36
"""Of Linux: the process becomes the parent of what its descendants abandon."""

# Ask about CUDA without starting it: what the fork server started, its children could not use.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
# torch would start its compiling processes when the fork server imports it; its children would wait
# for them in vain.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
CONTEXT: ForkServerContext | SpawnContext
if "forkserver" in multiprocessing.get_all_start_methods():
    CONTEXT = multiprocessing.get_context("forkserver")
    CONTEXT.set_forkserver_preload(["torch", "transformers", "harness.running.preload"])
else:  # on Windows, where each process imports all anew
    CONTEXT = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Answer:
    """What a process sends.

    Attributes:
        value: what its function returned.
        cpu_seconds: CPU time up to then.
    """

    value: dict[str, Any]
    cpu_seconds: float


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        value: what its function returned, by way of JSON; None if there is no such answer.
        exit_code: negative for a signal; None if it had to be killed.
        seconds: wall time.
        cpu_seconds: CPU time up to the function's return.
        stderr: the end of what it wrote, standard output included.
        unread: why what it sent is no answer; empty if it is one, or nothing came.
    """

    value: dict[str, Any] | None
    exit_code: int | None
    seconds: float
    cpu_seconds: float
    stderr: str
    unread: str = ""


class Drain(threading.Thread):
    """Reads a pipe to its end, so that no writer has to wait, and keeps the end of what came."""

    def __init__(self, pipe: Connection, limit: int) -> None:
        super().__init__(daemon=True)
        self.pipe, self.limit = pipe, limit
        self.kept = bytearray()
        self.start()

    def run(self) -> None:
        """Reads until nobody is left who could write."""
        with self.pipe:
            number = descriptor(self.pipe)
            while chunk := os.read(number, 1 << 16):
                self.kept += chunk
                if len(self.kept) > 2 * self.limit:
                    del self.kept[: -self.limit]

    def result(self) -> bytes:
        """The last `limit` bytes, once the writers are gone."""
        self.join(GRACE)
        return bytes(self.kept[-self.limit :])


def isolated(function: Callable[..., Any], arguments: tuple[Any, ...], time_limit: float) -> Ended:
    """Calls a function in a process of its own; waits at most `time_limit` and `GRACE` seconds.

    Args:
        function: importable by name; what it returns is a dataclass.
        arguments: picklable.
        time_limit: seconds, after which the process dumps where it is and ends; if even that fails,
            it is killed.
    """
    begun = time.monotonic()
    answer_end, answer = one_way(CONTEXT)
    output_end, output = one_way(CONTEXT)
    with answer, output:
        process = CONTEXT.Process(
            target=_serve, args=(answer, output, function, arguments, time_limit), daemon=True
        )
        process.start()
    answered, written = Drain(answer_end, LONGEST_ANSWER), Drain(output_end, LONGEST_OUTPUT)
    process.join(max(begun + time_limit + GRACE - time.monotonic(), 0))
    exit_code = process.exitcode
    if exit_code is None:
        _end(process)
    stderr = tail(written.result().decode("utf-8", "replace"), OUTPUT)
    seconds = time.monotonic() - begun
    sent = answered.result()
    try:
        read = build(Answer, parse(sent.decode("utf-8")), "its answer")
    except ValueError as error:
        return Ended(None, exit_code, seconds, 0.0, stderr, str(error) if sent else "")
    return Ended(read.value, exit_code, seconds, read.cpu_seconds, stderr)


def _end(guard: BaseProcess) -> None:
    """Kills what a guard guards, so that it ends; one that does not is killed, too."""
    last = time.monotonic() + GRACE
    while guard.pid and guard.is_alive() and time.monotonic() < last:
        end_descendants(guard.pid)  # again, for a worker may only now begin
        guard.join(0.1)
    guard.kill()
    guard.join()


def end_descendants(pid: int) -> None:
    """Kills what a process has started, and what that has, and so on."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _serve(
    answer: Connection,
    output: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    time_limit: float,
) -> None:
    """Runs in the worker, behind its guard: calls the function and sends what it returns."""
    if hasattr(os, "fork"):  # where there is none, what the function abandons outlives it
        _behind_guard()
    worker = os.getpid()
    for number in (1, 2):
        os.dup2(descriptor(output), number)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    faulthandler.enable(all_threads=True)
    faulthandler.dump_traceback_later(time_limit, exit=True)
    value = function(*arguments)
    if os.getpid() != worker:
        os._exit(0)  # a fork that came back from the function: the worker answers, nobody else
    text = f'{{"value": {to_json(value)}, "cpu_seconds": {time.process_time()}}}'
    with open(descriptor(answer), "wb", closefd=False) as pipe:
        pipe.write(text.encode())


def _behind_guard() -> None:
    """Returns in a child, the worker, in a session of its own; this process is its guard."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    guard, worker = os.getpid(), os.fork()
    if not worker:
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:
            os._exit(1)
        os.setsid()
        return
    # What interrupts the run comes to the guard, too; it ends when the worker has.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: end_descendants(os.getpid()))
    _end_like(_wait(worker))


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _wait(worker: int) -> int:
    """Waits for the worker, and until nothing it left is alive; returns how it ended."""
    ended: int | None = None
    while True:
        try:
            pid, status = os.wait()
        except ChildProcessError:
            return 0 if ended is None else os.waitstatus_to_exitcode(ended)
        if pid == worker:
            ended = status
            with suppress(ProcessLookupError):
                os.killpg(worker, signal.SIGKILL)  # all that can be found without adoption
        if ended is not None:
            end_descendants(os.getpid())


def _end_like(exit_code: int) -> None:
    """Ends this process with an exit code or, where it is negative, by that signal."""
    if exit_code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core of the guard tells nothing
        if -exit_code not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(-exit_code, signal.SIG_DFL)
        os.kill(os.getpid(), -exit_code)
    os._exit(exit_code)
