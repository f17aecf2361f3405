from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import torch

from rabbitllm.serving import worker as module
from rabbitllm.serving.errors import BusyError
from rabbitllm.serving.worker import Job, Worker
from rabbitllm.text import Answer
from tests.patience import PATIENCE

PROMPT = torch.tensor([[1]])


class Model:
    """Stands in for `generate`: each generation says its name, and ends when it is let go."""

    def __init__(self) -> None:
        self.order: list[str] = []
        self.gates: dict[str, threading.Event] = {}

    def generate(
        self,
        model: object,
        prompt: torch.Tensor,
        emit: Callable[[str], object],
        *,
        cancelled: threading.Event,
        name: str,
    ) -> Answer:
        self.order.append(name)
        emit(name)
        if name == "broken":
            raise RuntimeError("out of luck")
        gate = self.gates.setdefault(name, threading.Event())
        while not gate.wait(0.01) and not cancelled.is_set():
            pass
        emit("!")
        return Answer(1, 2, "cancelled" if cancelled.is_set() else "length", 0.1, 0.1)

    def let_go(self, *names: str) -> None:
        for name in names:
            self.gates.setdefault(name, threading.Event()).set()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    made = Model()
    monkeypatch.setattr(module, "generate", made.generate)
    return made


def run(play: Callable[[Callable[[str], Job]], Coroutine[Any, Any, None]], waiting: int) -> None:
    """Plays a scene with a worker's `submit`."""

    async def scene() -> None:
        worker = Worker(None, waiting)  # type: ignore[arg-type]
        try:
            await play(lambda name: submit(worker, name=name))
        finally:
            worker.close()

    asyncio.run(asyncio.wait_for(scene(), PATIENCE))


def submit(worker: Worker, seed: int | None = None, **options: Any) -> Job:
    with worker.reserve() as job:
        worker.start(job, PROMPT, seed, **options)
    return job


async def text(job: Job) -> str:
    return "".join([piece async for piece in job.pieces()])


def test_jobs_run_one_after_the_other(model: Model) -> None:
    async def play(submit: Callable[[str], Job]) -> None:
        jobs = [submit(name) for name in "abc"]
        model.let_go("c", "b")
        async for _ in jobs[0].pieces():
            break
        assert model.order == ["a"]
        model.let_go("a")
        assert [await text(job) for job in jobs[1:]] == ["b!", "c!"]
        assert [job.answer.result().finish_reason for job in jobs] == ["length"] * 3

    run(play, waiting=2)
    assert model.order == ["a", "b", "c"]


@pytest.mark.parametrize("waiting", [0, 1, 3])
def test_beyond_the_queue_is_refused_until_a_place_is_free(model: Model, waiting: int) -> None:
    async def play(submit: Callable[[str], Job]) -> None:
        jobs = [submit(str(i)) for i in range(waiting + 1)]
        with pytest.raises(BusyError):
            submit("too many")
        model.let_go("0")
        await text(jobs[0])
        submit("again")
        with pytest.raises(BusyError):
            submit("too many")

    run(play, waiting)
    assert "too many" not in model.order


def test_who_leaves_the_queue_frees_the_place_and_never_runs(model: Model) -> None:
    async def play(submit: Callable[[str], Job]) -> None:
        first, second = submit("first"), submit("second")
        second.cancel()
        assert await text(second) == ""
        assert second.cancelled
        assert second.answer.cancelled()
        third = submit("third")
        model.let_go("first", "third")
        assert [await text(job) for job in (first, third)] == ["first!", "third!"]

    run(play, waiting=1)
    assert model.order == ["first", "third"]


def test_who_leaves_while_running_ends_the_generation(model: Model) -> None:
    async def play(submit: Callable[[str], Job]) -> None:
        job = submit("job")
        async for _ in job.pieces():
            job.cancel()
        assert job.answer.result().finish_reason == "cancelled"

    run(play, waiting=0)


def test_a_failure_is_the_answer_and_the_next_job_runs(model: Model) -> None:
    async def play(submit: Callable[[str], Job]) -> None:
        broken, after = submit("broken"), submit("after")
        model.let_go("after")
        assert await text(broken) == "broken"
        assert str(broken.answer.exception()) == "out of luck"
        assert await text(after) == "after!"

    run(play, waiting=1)


def test_a_long_silence_is_an_empty_piece(model: Model) -> None:
    async def play(submit: Callable[[str], Job]) -> None:
        pieces = []
        async for piece in submit("job").pieces(patience=0.05):
            pieces.append(piece)
            if piece == "":
                model.let_go("job")
        assert pieces[0] == "job"
        assert set(pieces[1:-1]) == {""}
        assert pieces[-1] == "!"

    run(play, waiting=0)


def test_closing_cancels_everything(model: Model) -> None:
    async def play(submit: Callable[[str], Job]) -> None:
        job = submit("first")
        submit("second")
        async for _ in job.pieces():
            break

    run(play, waiting=1)
    assert model.order == ["first"]
    assert not [t for t in threading.enumerate() if t.name.startswith("rabbitllm-generate")]


def test_a_seed_is_set_before_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def generate(*_: object, **__: object) -> Answer:
        drawn.append(torch.rand(1).item())
        return Answer(1, 1, "length", 0.1, 0.0)

    monkeypatch.setattr(module, "generate", generate)

    async def scene() -> None:
        worker = Worker(None, 9)  # type: ignore[arg-type]
        for seed in (3, None, 3):
            await text(submit(worker, seed))
        worker.close()

    asyncio.run(scene())
    assert drawn[0] == drawn[2] != drawn[1]
