"""Work beside the event loop, on a thread that does not outlive its time."""

import asyncio
import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from rabbitllm.serving.errors import BusyError

Value = TypeVar("Value")


class TimeLimitError(Exception):
    """A function took longer than it may."""


class Aside:
    """Runs functions one after the other, so that tokenizers need not be safe for threads.

    Args:
        seconds: that a function may take, and may wait for its turn.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._turn = asyncio.Lock()

    async def run(self, function: Callable[[], Value]) -> Value:
        """What the function returns or raises.

        Raises:
            BusyError: its turn did not come in time.
            TimeLimitError: it took too long. What it does in Python ends then; a call into compiled
                code ends first, and others wait for it.
        """
        try:
            await asyncio.wait_for(self._turn.acquire(), self._seconds)
        except asyncio.TimeoutError:
            raise BusyError from None
        task = _Task(function)
        outcome = asyncio.wrap_future(task.outcome)
        outcome.add_done_callback(self._over)
        task.start()
        done, _ = await asyncio.wait([outcome], timeout=self._seconds)
        if not done:
            task.interrupt()
            raise TimeLimitError(f"It took more than {self._seconds:g} seconds")
        return outcome.result()

    def _over(self, outcome: "asyncio.Future[Value]") -> None:
        self._turn.release()
        outcome.exception()  # else asyncio logs that nobody asked for it


class _Task(threading.Thread, Generic[Value]):
    """A function on a daemon thread, which no exit of the process waits for."""

    def __init__(self, function: Callable[[], Value]) -> None:
        super().__init__(name="rabbitllm-aside", daemon=True)
        self.outcome: Future[Value] = Future()
        self.outcome.set_running_or_notify_cancel()  # so that nobody can cancel it any more
        self._function = function
        self._within = threading.Lock()
        self._over = False

    def run(self) -> None:
        try:
            try:
                value = self._function()
            finally:
                with self._within:  # an interruption came before, or never comes
                    self._over = True
        except BaseException as error:  # the caller's to handle, whatever it is
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(value)

    def interrupt(self) -> None:
        """Raises TimeLimitError in the function's Python code, if it still runs."""
        with self._within:
            if not self._over:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self.ident or 0), ctypes.py_object(TimeLimitError)
                )
