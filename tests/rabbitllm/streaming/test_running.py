from __future__ import annotations

import threading

import pytest
import torch

from rabbitllm.streaming.devices.slot import Slot
from rabbitllm.streaming.running import Run, Running
from rabbitllm.streaming.weights import Stage

STAGE = Stage("layers.0", (), ())


def running(thread: int, inside: bool) -> Running:
    return Running({STAGE: Run(Slot(torch.zeros(1)), 0.0, thread, inside)})


def elsewhere() -> tuple[int, threading.Event]:
    """A thread that lives until the event is set."""
    end, thread = threading.Event(), None
    thread = threading.Thread(target=end.wait, daemon=True)
    thread.start()
    assert thread.ident is not None
    return thread.ident, end


def test_a_stage_does_not_run_inside_itself() -> None:
    here = running(threading.get_ident(), inside=True)
    with pytest.raises(RuntimeError, match=r"layers\.0 is already running"):
        here.refuse_twice(STAGE, inside=True)
    here.refuse_twice(STAGE, inside=False)  # one that was cut off


def test_nor_in_two_threads() -> None:
    ident, end = elsewhere()
    with pytest.raises(RuntimeError, match=r"layers\.0 is already running"):
        running(ident, inside=False).refuse_twice(STAGE, inside=False)
    end.set()


def test_what_another_thread_runs_by_itself_is_not_over() -> None:
    ident, end = elsewhere()
    assert not running(ident, inside=False)[STAGE].over
    assert running(ident, inside=True)[STAGE].over, "whoever asks has the turn, so it has not"
    assert running(threading.get_ident(), inside=False)[STAGE].over
    assert running(-1, inside=False)[STAGE].over, "a thread that is no more"
    end.set()
