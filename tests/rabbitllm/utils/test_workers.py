from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait

import pytest

from rabbitllm.utils.workers import Workers
from tests.patience import PATIENCE


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(1, "rabbitllm-test")
    yield made
    made.close()


def alive(prefix: str = "rabbitllm-test") -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(prefix)]


def test_tasks_run_in_their_order(workers: Workers) -> None:
    seen: list[int] = []
    wait([workers.submit(seen.append, i) for i in range(100)], PATIENCE)
    assert seen == list(range(100))


def test_threads_start_with_the_first_task_and_end_with_the_owner() -> None:
    workers = Workers(3, "rabbitllm-test")
    assert not alive()
    workers.submit(int).result(PATIENCE)
    assert len(alive()) == 3
    del workers
    assert not alive()


def test_an_end_waits_for_what_is_under_way_and_cancels_the_rest(workers: Workers) -> None:
    begun, go_on, seen = threading.Event(), threading.Event(), []

    def first() -> None:
        begun.set()
        go_on.wait(PATIENCE)
        seen.append("first")

    running = workers.submit(first)
    waiting = workers.submit(seen.append, "second")
    assert begun.wait(PATIENCE)
    threading.Timer(0.05, go_on.set).start()
    workers.close()
    assert running.done()
    assert seen == ["first"]
    with pytest.raises(CancelledError):
        waiting.result(0)
    assert not alive()


def test_what_is_cancelled_lets_what_waits_for_it_go_on(workers: Workers) -> None:
    workers.cancel()
    with pytest.raises(CancelledError):
        workers.submit(int).result(PATIENCE)


def test_a_thread_that_deletes_its_own_workers_does_not_wait_for_itself() -> None:
    held = [Workers(1, "rabbitllm-test")]
    done = threading.Event()

    def drop() -> None:
        held.clear()
        done.set()

    held[0].submit(drop)
    assert done.wait(PATIENCE)
    for thread in alive():
        thread.join(PATIENCE)
    assert not alive()


def test_an_error_keeps_nothing_alive_but_itself(workers: Workers) -> None:
    class Thing:
        pass

    class OwnError(LookupError):
        pass

    def fail(thing: Thing, holder: list[object]) -> None:
        raise OwnError("as it is")

    gc.collect()
    gc.disable()
    try:
        thing, holder = Thing(), list[object]()
        reference = weakref.ref(thing)
        future = workers.submit(fail, thing, holder)
        holder.append(future)
        wait([future], PATIENCE)
        error = weakref.ref(future.exception())
        workers.close()
        del thing, holder, future
        assert reference() is None
        assert error() is None
    finally:
        gc.enable()
