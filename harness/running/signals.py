"""A run that is told to stop takes the processes along that it has started."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

import psutil


@contextmanager
def stoppable(first: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Within, SIGTERM raises what unwinds as at Ctrl-C; to be entered in the main thread.

    Args:
        first: called before anything unwinds.

    Raises:
        SystemExit: SIGTERM came; its code is 143, as a shell counts it.
    """

    def stop(number: int, _: FrameType | None) -> NoReturn:
        first()
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def end_children() -> None:
    """Sends SIGTERM to what this process has started, and what that has, and so on."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.terminate()
