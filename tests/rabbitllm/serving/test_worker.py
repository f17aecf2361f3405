from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch

from rabbitllm import StreamedModel
from rabbitllm.serving.errors import BusyError
from rabbitllm.serving.worker import PLACE, REQUEST, TEXT, TOKEN, Job, Worker
from tests.patience import PATIENCE

PROMPT = torch.tensor([[70, 71, 72]])
LONG = 15_000
"""Tokens that take minutes."""
BODY = 100
"""Bytes of a request."""
EACH = REQUEST + TEXT * BODY + PROMPT.shape[1] * (TOKEN + PLACE)
"""Bytes that a job takes."""

Submit = Callable[..., Job]
Play = Callable[[Submit], Coroutine[Any, Any, None]]


@pytest.fixture
def model(talker: Path, streamed: Callable[..., StreamedModel]) -> StreamedModel:
    return streamed(talker)


def run(model: StreamedModel, play: Play, memory: int = 13 * EACH, most: int = 4) -> None:
    """Plays a scene with a worker's `submit`."""

    async def scene() -> None:
        worker = Worker(model, memory, most)
        try:
            await play(lambda new=5, *rest, **options: submit(worker, new, *rest, **options))
        finally:
            worker.close()

    asyncio.run(asyncio.wait_for(scene(), PATIENCE))


def submit(worker: Worker, new: int, seed: int | None = None, **options: Any) -> Job:
    with worker.reserve(BODY) as job:
        asked = {"do_sample": False} | options
        worker.start(job, PROMPT, [{"seed": seed, "max_new_tokens": new, **asked}])
    return job


async def text(job: Job) -> str:
    return "".join([piece.text async for piece in job.pieces()])


async def first(job: Job) -> str:
    """The first piece of a job that goes on."""
    pieces = job.pieces()
    piece = await anext(pieces)
    await pieces.aclose()
    return piece.text


def test_jobs_share_passes(model: StreamedModel) -> None:
    async def play(submit: Submit) -> None:
        before = model.streaming_stats()["forwards"]
        jobs = [submit(20) for _ in range(4)]
        texts = [await text(job) for job in jobs]
        assert len(set(texts)) == 1
        assert len(texts[0]) == 20
        assert [job.rows[0].answer.result().finish_reason for job in jobs] == ["length"] * 4
        assert model.streaming_stats()["forwards"] - before < 30

    run(model, play)


def test_a_short_answer_overtakes_a_long_one(model: StreamedModel) -> None:
    async def play(submit: Submit) -> None:
        long = submit(LONG)
        await first(long)
        assert len(await text(submit(3))) == 3
        assert not long.rows[0].answer.done()

    run(model, play)


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_beyond_the_memory_for_jobs_is_refused_until_there_is_some(
    model: StreamedModel, jobs: int
) -> None:
    count = jobs

    async def play(submit: Submit) -> None:
        jobs = [submit(LONG) for _ in range(count)]
        with pytest.raises(BusyError):
            submit()
        jobs[0].cancel()
        await text(jobs[0])
        submit(LONG)
        with pytest.raises(BusyError):
            submit()

    run(model, play, jobs * EACH, most=2)


def test_what_a_job_takes_goes_by_its_size(model: StreamedModel) -> None:
    async def scene() -> None:
        worker = Worker(model, 3 * REQUEST, 4)
        try:
            with pytest.raises(BusyError), worker.reserve(0), worker.reserve(REQUEST // TEXT * 2):
                pass
            assert worker.held == 0
            with worker.reserve(9 * REQUEST):  # who is alone is let in
                assert worker.held == (1 + 9 * TEXT) * REQUEST
            long = torch.full((1, 2 * REQUEST // TOKEN), 70)
            with worker.reserve(0), pytest.raises(BusyError), worker.reserve(0) as job:
                worker.start(job, long, [{"max_new_tokens": 3}])
            with worker.reserve(0) as job:
                worker.start(job, long, [{"max_new_tokens": 3}])
            assert await text(job)
            assert worker.held == 0
        finally:
            worker.close()

    asyncio.run(asyncio.wait_for(scene(), PATIENCE))


def test_who_leaves_the_queue_frees_the_place_and_never_runs(model: StreamedModel) -> None:
    async def play(submit: Submit) -> None:
        running, second = submit(LONG), submit()
        await first(running)
        second.cancel()
        assert await text(second) == ""
        assert second.cancelled
        assert second.rows[0].answer.cancelled()
        third = submit(3)
        running.cancel()
        assert len(await text(third)) == 3

    run(model, play, 2 * EACH, most=1)


def test_who_leaves_while_running_ends_the_generation(model: StreamedModel) -> None:
    async def play(submit: Submit) -> None:
        job = submit(LONG)
        async for _ in job.pieces():
            job.cancel()
        assert job.rows[0].answer.result().finish_reason == "cancelled"

    run(model, play)


def test_a_failure_is_the_answer_and_the_next_job_runs(model: StreamedModel) -> None:
    async def play(submit: Submit) -> None:
        broken, after = submit(do_sample=True, temperature=-1.0), submit(3)
        assert await text(broken) == ""
        assert isinstance(broken.rows[0].answer.exception(), ValueError)
        assert len(await text(after)) == 3

    run(model, play)


def test_a_long_silence_is_an_empty_piece(model: StreamedModel) -> None:
    go_on = threading.Event()
    model.register_forward_pre_hook(lambda *_: go_on.wait(PATIENCE) and None)

    async def play(submit: Submit) -> None:
        pieces = []
        async for piece in submit(2).pieces(patience=0.05):
            pieces.append(piece.text)
            if len(pieces) == 2:
                go_on.set()
        assert pieces[:2] == ["", ""]
        assert len("".join(pieces)) == 2

    run(model, play)


def test_closing_cancels_everything(model: StreamedModel) -> None:
    jobs = []

    async def play(submit: Submit) -> None:
        jobs.extend(submit(LONG) for _ in range(3))
        await first(jobs[0])

    run(model, play, most=1)
    assert jobs[0].rows[0].answer.result().finish_reason == "cancelled"
    assert all(job.rows[0].answer.cancelled() for job in jobs[1:])
    assert not [t for t in threading.enumerate() if t.name.startswith("rabbitllm-generate")]


def test_a_seed_repeats_a_sample_whoever_else_draws(model: StreamedModel) -> None:
    async def play(submit: Submit) -> None:
        options: Any = {"do_sample": True, "temperature": 1.5}
        jobs = [submit(20, seed, **options) for seed in (3, None, 3, 4)]
        texts = [await text(job) for job in jobs]
        assert texts[0] == texts[2]
        assert len(set(texts)) == 3

    run(model, play)
