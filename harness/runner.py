"""Runs a cell in a fresh process with a time limit: a crash or a hang costs that cell alone."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import environment
from harness.cells import Cell
from harness.fingerprints import explanation, fingerprint, scrub
from harness.records import FAILED, Record, Status, to_json
from harness.records.blank import blank
from harness.strict import build

TIME_LIMIT = 300.0
"""Seconds that a cell may take: a hundred times what most need, several times what compiling does.
"""
GRACE = 5.0
"""Seconds beyond the limit in which the process may still end by itself and say where it hung."""
STDERR_TAIL = 4_000

# Ask about CUDA without starting it: what the fork server started, its children could not use.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
# torch would start its compiling processes when the fork server imports it; its children would wait
# for them in vain.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch", "transformers", "harness.preload"])


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Attributes:
        value: what its function returned, by way of JSON; None if it did not return.
        exit_code: negative for a signal; None if it had to be killed.
        seconds: wall time.
        cpu_seconds: CPU time up to the function's return.
        stderr: the end of what it wrote, standard output included.
    """

    value: dict[str, Any] | None
    exit_code: int | None
    seconds: float
    cpu_seconds: float
    stderr: str


def run(cell: Cell, cache: Path, time_limit: float = TIME_LIMIT) -> Record:
    """Return the record of a cell. One that fails runs again: another outcome makes it flaky.

    Not what stock transformers fails at: nothing streamed then, and the list of expected failures
    notices when it comes and goes.

    Args:
        cell: what to measure with the installed transformers.
        cache: folder for checkpoints; may be shared by processes.
        time_limit: seconds for each run.
    """
    if cell.unsupported:
        return unmeasured(cell, "unsupported", cell.unsupported)
    if reason := environment.unmet(cell):
        return unmeasured(cell, "not-run", reason)
    first = run_once(cell, cache, time_limit)
    if first.status not in FAILED or first.status in ("timeout", "reference-broken"):
        return first
    second = run_once(cell, cache, time_limit)
    if (second.status, second.fingerprint) == (first.status, first.fingerprint):
        return first
    message = f"{first.status} ({first.message}), then {second.status} ({second.message})"
    return replace(first, status="flaky", message=message)


def run_once(cell: Cell, cache: Path, time_limit: float) -> Record:
    """Return the record of one run of a cell."""
    ended = isolated(_measure, (cell, cache), time_limit)
    record = unmeasured(cell, "pass")
    record = replace(record, seconds=ended.seconds, cpu_seconds=ended.cpu_seconds)
    if ended.value is not None:
        record = build(Record, {**vars(record), **ended.value}, cell.id)
        if ended.exit_code == 0:
            return replace(record, explanation=explanation(record.exception, record.message))
    status, exception, message = cause_of_death(ended, time_limit)
    return replace(
        record,
        status=status,
        exception=exception,
        message=message,
        stderr=ended.stderr,
        fingerprint=fingerprint(exception, message, innermost(ended.stderr)),
    )


def cause_of_death(ended: Ended, time_limit: float) -> tuple[Status, str, str]:
    """Return status, exception name and message for a process that did not end well."""
    after = "" if ended.value is None else " after its last check"
    if ended.exit_code is None or ended.seconds >= time_limit:
        return (
            "timeout",
            "Timeout",
            f"the process did not end{after or f' within {time_limit:g} s'}",
        )
    if ended.exit_code < 0:
        name = signal.Signals(-ended.exit_code).name
        return "crash", name, f"the process died of {name}{after}"
    return (
        "crash",
        "Exit",
        f"the process ended with exit code {ended.exit_code}{after or ' and no result'}",
    )


def unmeasured(cell: Cell, status: Status, message: str = "") -> Record:
    """Return a blank record that says where as well: what is installed, and the hardware."""
    hardware = environment.hardware(cell.device) if status != "not-run" else ""
    record = blank(cell, status, message)
    return replace(record, versions=environment.versions(), hardware=hardware)


def isolated(function: Callable[..., Any], arguments: tuple[Any, ...], time_limit: float) -> Ended:
    """Call a function in a process of its own; wait at most `time_limit` and `GRACE` seconds.

    Args:
        function: importable by name; what it returns is a dataclass.
        arguments: picklable.
        time_limit: seconds, after which the process dumps where it is and ends; if even that fails,
            it is killed.
    """
    begun = time.monotonic()
    with tempfile.NamedTemporaryFile(suffix=".stderr") as log:
        receiver, sender = CONTEXT.Pipe(duplex=False)
        process = CONTEXT.Process(
            target=_serve, args=(sender, log.name, function, arguments, time_limit), daemon=True
        )
        process.start()
        sender.close()
        answer = _receive(receiver, begun + time_limit + GRACE - time.monotonic())
        process.join(max(begun + time_limit + GRACE - time.monotonic(), GRACE if answer else 0))
        exit_code = process.exitcode
        if exit_code is None:
            process.kill()
            process.join()
        receiver.close()
        stderr = Path(log.name).read_text("utf-8", "replace")
    value, cpu_seconds = (answer["value"], answer["cpu_seconds"]) if answer else (None, 0.0)
    seconds = time.monotonic() - begun
    return Ended(value, exit_code, seconds, cpu_seconds, scrub(stderr)[-STDERR_TAIL:])


def _receive(receiver: multiprocessing.connection.Connection, wait: float) -> dict[str, Any] | None:
    """Return the process's answer; None if it ends, or time does, before there is a whole one."""
    try:
        if not receiver.poll(max(wait, 0)):
            return None
        answer: dict[str, Any] = json.loads(receiver.recv_bytes())
    except (EOFError, OSError):
        return None
    return answer


def _serve(
    sender: multiprocessing.connection.Connection,
    log: str,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    time_limit: float,
) -> None:
    """Run in the process: call the function and send what it returns."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    faulthandler.enable(all_threads=True)
    faulthandler.dump_traceback_later(time_limit, exit=True)
    value = function(*arguments)
    text = f'{{"value": {to_json(value)}, "cpu_seconds": {time.process_time()}}}'
    sender.send_bytes(text.encode())
    sender.close()


def _measure(cell: Cell, cache: Path) -> Any:
    from harness.measure import measure  # needs torch, which the caller may not import

    return measure(cell, cache)


def innermost(stderr: str) -> str:
    """Return the first line of a faulthandler dump that names a function."""
    return next((line.strip() for line in stderr.splitlines() if line.startswith("  File ")), "")
