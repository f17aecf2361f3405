"""Threads that run what they are handed, and end with whoever they work for.

Unlike those of a ThreadPoolExecutor they are waited for, so that a model that is deleted is gone,
and what they need of other threads is bounded: a garbage collection may delete a model anywhere.
"""

import threading
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeAlias

from typing_extensions import override

PATIENCE = 10
"""Seconds that an end waits for tasks under way. One that the caller itself holds up ends later."""

Task: TypeAlias = "tuple[Future[None], Callable[..., None], tuple[Any, ...]]"


class Workers:
    """A number of threads that take tasks in the order in which they come.

    Args:
        count: threads; they start with the first task.
        name: what their names begin with.
    """

    def __init__(self, count: int, name: str) -> None:
        self._count = count
        self._name = name
        self._tasks: SimpleQueue[Task | None] = SimpleQueue()
        self._threads: list[_Worker] = []
        self._starting = threading.Lock()
        self._closing = threading.Event()
        self.close = weakref.finalize(self, _close, self._tasks, self._threads, self._closing)

    def submit(self, task: Callable[..., None], *arguments: Any) -> "Future[None]":
        """Has a thread call `task`; the future brings its end or its error."""
        with self._starting:
            while len(self._threads) < self._count:
                name = f"{self._name}_{len(self._threads)}"
                self._threads.append(_Worker(self._tasks, self._closing, name))
                self._threads[-1].start()
        future: Future[None] = Future()
        self._tasks.put((future, task, arguments))
        return future

    def cancel(self) -> None:
        """Has no task begin any more: those that wait and those that come are cancelled."""
        self._closing.set()


class _Worker(threading.Thread):
    """A daemon: the interpreter's exit ends it by `Workers.close`, not by waiting for its tasks."""

    def __init__(
        self, tasks: "SimpleQueue[Task | None]", closing: threading.Event, name: str
    ) -> None:
        super().__init__(name=name, daemon=True)
        self._tasks = tasks
        self._closing = closing

    @override
    def run(self) -> None:
        while task := self._tasks.get():
            self._do(*task)
            del task  # nothing is kept alive while there is nothing to do

    def _do(
        self, future: "Future[None]", task: Callable[..., None], arguments: tuple[Any, ...]
    ) -> None:
        if self._closing.is_set():
            future.cancel()
        if not future.set_running_or_notify_cancel():
            return
        try:
            task(*arguments)
        except BaseException as error:  # it is the future's
            traceback.clear_frames(error.__traceback__)
            future.set_exception(error)
        else:
            future.set_result(None)
        finally:
            # As in the frames that were cleared: what they hold leads to the future, and so the
            # error, whose traceback holds them, would hold itself.
            del future, task, arguments


def _close(
    tasks: "SimpleQueue[Task | None]", threads: list[_Worker], closing: threading.Event
) -> None:
    """Ends the threads: what waits is cancelled, and what is under way is waited for."""
    closing.set()
    for _ in threads:
        tasks.put(None)
    if isinstance(threading.current_thread(), _Worker):
        return  # one that waited for itself, or for one that waits for it, would not end
    for thread in threads:
        if thread.is_alive():
            thread.join(PATIENCE)
