"""One generation at a time, on a thread; others wait in a queue of fixed length."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from rabbitllm.model import StreamedModel
from rabbitllm.serving.errors import BusyError
from rabbitllm.text import Answer, generate
from rabbitllm.utils.glibc import give_back


class Job:
    """One generation: a place in the queue, then waiting or running.

    Attributes:
        started: the prompt is there.
        answer: how it went, once it is over; cancelled if it never began.
    """

    def __init__(self) -> None:
        self.started = False
        self.answer: Future[Answer] = Future()
        self._cancelled = threading.Event()
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()

    @property
    def cancelled(self) -> bool:
        """Somebody gave up before it was over."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Gives up the place in the queue, or ends the generation with the token under way."""
        self._cancelled.set()
        self.answer.cancel()

    async def pieces(self, patience: float | None = None) -> AsyncIterator[str]:
        """The text as it comes; an empty piece whenever none came for `patience` seconds.

        Ends when `answer` is there.
        """
        while True:
            try:
                piece = await asyncio.wait_for(self._pieces.get(), patience)
            except asyncio.TimeoutError:
                piece = ""
            if piece is None:
                return
            yield piece


class Worker:
    """Runs jobs in the order of their arrival. To be used from one event loop.

    Args:
        model: what generates.
        waiting: how many jobs may wait while one runs.
    """

    def __init__(self, model: StreamedModel, waiting: int) -> None:
        self.model = model
        self._places = waiting + 1
        self._jobs: set[Job] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rabbitllm-generate")

    @contextlib.contextmanager
    def reserve(self) -> Iterator[Job]:
        """A place in the queue, which is given back if the job is not started meanwhile.

        Raises:
            BusyError: there is none.
        """
        if len(self._jobs) >= self._places:
            raise BusyError
        job = Job()
        self._jobs.add(job)
        try:
            yield job
        finally:
            if not job.started:
                self._jobs.discard(job)

    def start(self, job: Job, prompt: torch.Tensor, seed: int | None, **options: Any) -> None:
        """Queues a job's generation.

        Args:
            job: what has a place.
            prompt: token ids [1, tokens].
            seed: of the sampling; None leaves the generator as it is.
            options: of `rabbitllm.text.generate`.
        """
        loop = asyncio.get_running_loop()

        def hand_on(piece: str) -> None:
            loop.call_soon_threadsafe(job._pieces.put_nowait, piece)

        def run() -> Answer:
            if seed is not None:
                torch.manual_seed(seed)
            return generate(self.model, prompt, hand_on, cancelled=job._cancelled, **options)

        def over(_: object) -> None:
            loop.call_soon_threadsafe(self._forget, job)

        job.started = True
        job.answer = self._thread.submit(run)
        job.answer.add_done_callback(over)

    def give_back_memory(self) -> None:
        """Returns to the system what is free once the jobs before are over."""
        self._thread.submit(_give_back_memory)

    def close(self) -> None:
        """Cancels everything, and waits for the token under way."""
        for job in self._jobs:
            job.cancel()
        self._thread.shutdown()

    def _forget(self, job: Job) -> None:
        self._jobs.discard(job)
        job._pieces.put_nowait(None)


def _give_back_memory() -> None:
    """After large prompts glibc keeps what its threads freed, hundreds of megabytes."""
    gc.collect()  # a refusal's traceback holds the prompt, in a circle
    give_back()
