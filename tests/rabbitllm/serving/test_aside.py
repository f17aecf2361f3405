from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine
from typing import Any

import pytest

from rabbitllm.serving.aside import Aside, TimeLimitError
from rabbitllm.serving.errors import BusyError
from tests.patience import PATIENCE


def play(scene: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scene, PATIENCE))


def forever() -> None:
    while True:
        pass


def test_a_value_and_an_error_come_back() -> None:
    async def scene() -> None:
        aside = Aside(PATIENCE)
        assert await aside.run(lambda: 5) == 5
        with pytest.raises(ZeroDivisionError):
            await aside.run(lambda: 1 // 0)
        assert await aside.run(threading.current_thread) is not threading.main_thread()

    play(scene())


def test_functions_take_turns() -> None:
    running: list[int] = []
    together: list[int] = []

    def note() -> None:
        running.append(1)
        time.sleep(0.01)  # room for another, if turns were not kept
        together.append(len(running))
        running.pop()

    async def scene() -> None:
        aside = Aside(PATIENCE)
        await asyncio.gather(*(aside.run(note) for _ in range(5)))

    play(scene())
    assert together == [1] * 5


def test_python_code_without_end_is_ended_and_the_next_one_runs() -> None:
    async def scene() -> None:
        aside = Aside(0.2)
        with pytest.raises(TimeLimitError, match=r"more than 0\.2 seconds"):
            await aside.run(forever)
        assert await aside.run(lambda: 5) == 5

    play(scene())
    for thread in threading.enumerate():
        if thread.name == "rabbitllm-aside":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def test_compiled_code_is_waited_for_by_the_next_one_alone() -> None:
    released = threading.Event()

    async def scene() -> None:
        aside = Aside(0.2)
        with pytest.raises(TimeLimitError):
            await aside.run(released.wait)
        with pytest.raises(BusyError):
            await aside.run(lambda: 5)
        released.set()
        patient = Aside(PATIENCE)
        patient._turn = aside._turn
        assert await patient.run(lambda: 5) == 5

    play(scene())


def test_the_event_loop_is_free_meanwhile() -> None:
    async def scene() -> None:
        aside = Aside(0.5)
        task = asyncio.ensure_future(aside.run(forever))
        turns = 0
        while not task.done():
            await asyncio.sleep(0)
            turns += 1
        assert isinstance(task.exception(), TimeLimitError)
        assert turns > 5

    play(scene())
