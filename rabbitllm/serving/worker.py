"""Generations that share passes, on a thread; those that do not fit wait in a queue."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from rabbitllm.batching import Batch, Row
from rabbitllm.model import StreamedModel
from rabbitllm.serving.errors import BusyError
from rabbitllm.serving.metrics import Metrics
from rabbitllm.utils.glibc import give_back

REQUEST, TEXT, TOKEN, PLACE = 1 << 16, 4, 40, 8
"""Bytes that a request takes while it waits or is answered: its connection, objects and events, for
each byte of its body, for each token of its prompt, and for that in each of its answers."""


@dataclass(frozen=True)
class Piece:
    """Some new text of one of a job's answers; without text, a sign that it goes on.

    Attributes:
        index: of the answer.
        text: that is new.
        tokens: that the answer has by then.
    """

    index: int = 0
    text: str = ""
    tokens: int = 0


class Job:
    """What answers one request: a place, then sequences that wait or run.

    Args:
        nbytes: that it takes, as far as is known.

    Attributes:
        nbytes: the same.
        rows: the sequences, once the prompt is there.
        cancelled: somebody gave up before it was over.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.rows: list[Row] = []
        self.cancelled = False
        self._pieces: asyncio.Queue[Piece | None] = asyncio.Queue()

    @property
    def error(self) -> BaseException | None:
        """What ended one of the answers, once all are over."""
        errors = (row.answer.exception() for row in self.rows if not row.answer.cancelled())
        return next((error for error in errors if error), None)

    def cancel(self) -> None:
        """Gives up the place in the queue, or ends the answers with the pass under way."""
        self.cancelled = True
        for row in self.rows:
            row.cancel()

    async def pieces(self, patience: float | None = None) -> AsyncIterator[Piece]:
        """The text as it comes; an empty piece whenever none came for `patience` seconds.

        Ends when all answers are there.
        """
        while True:
            try:
                piece = await asyncio.wait_for(self._pieces.get(), patience)
            except asyncio.TimeoutError:
                piece = Piece()
            if piece is None:
                return
            yield piece


class Worker:
    """Runs jobs, beside one another where there is memory. To be used from one event loop.

    Args:
        model: what generates.
        memory: bytes that jobs may take, those that run included, beside the model and its caches.
            One is let in in any case.
        most: how many may run at once; memory may allow fewer.

    Attributes:
        batch: what runs them.
        metrics: counts them.
    """

    def __init__(self, model: StreamedModel, memory: int, most: int) -> None:
        self.model = model
        self.batch = Batch(model, most)
        self.metrics = Metrics(self.batch)
        self._memory = memory
        self._jobs: set[Job] = set()
        self._news = threading.Condition()
        self._closing = self._untidy = False
        self._thread = threading.Thread(target=self._run, name="rabbitllm-generate", daemon=True)
        self._thread.start()

    @property
    def held(self) -> int:
        """Bytes that jobs take."""
        return sum(job.nbytes for job in self._jobs)

    @contextlib.contextmanager
    def reserve(self, body: int) -> Iterator[Job]:
        """A place for a request with so many bytes; it is given back if the job is not started.

        Raises:
            BusyError: there is no memory for it.
        """
        job = Job(REQUEST + TEXT * body)
        self._check(job.nbytes)
        self._jobs.add(job)
        try:
            yield job
        finally:
            if not job.rows:
                self._jobs.discard(job)

    def start(self, job: Job, prompt: torch.Tensor, requests: Sequence[dict[str, Any]]) -> None:
        """Queues a job's answers.

        Args:
            job: what has a place.
            prompt: token ids [1, tokens].
            requests: options of `Batch.add` for each answer.

        Raises:
            BusyError: there is no memory for so many tokens.
        """
        more = prompt.shape[1] * (TOKEN + PLACE * len(requests))
        self._check(more, job)
        job.nbytes += more
        loop = asyncio.get_running_loop()

        def hand_on(index: int, text: str) -> None:
            piece = Piece(index, text, len(job.rows[index].tokens))
            loop.call_soon_threadsafe(job._pieces.put_nowait, piece)

        def over(_: object) -> None:
            if all(row.answer.done() for row in job.rows):
                loop.call_soon_threadsafe(self._forget, job)

        ids = prompt[0].tolist()
        job.rows = [
            Row(self.model, ids, partial(hand_on, index), **options)
            for index, options in enumerate(requests)
        ]
        for row in job.rows:
            row.answer.add_done_callback(self.metrics.count)
            row.answer.add_done_callback(over)
        self.batch.waiting.extend(job.rows)
        with self._news:
            self._news.notify()

    def _check(self, more: int, job: Job | None = None) -> None:
        """Raises BusyError if there is no memory for more, unless it is for the only job."""
        if self._jobs - {job} and self.held + more > self._memory:
            raise BusyError

    @property
    def alive(self) -> bool:
        """Its thread runs."""
        return self._thread.is_alive()

    def give_back_memory(self) -> None:
        """Returns to the system what is free, behind the pass under way."""
        with self._news:
            self._untidy = True
            self._news.notify()

    def close(self) -> None:
        """Cancels everything, and waits for the pass under way."""
        for job in self._jobs:
            job.cancel()
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self.batch.asked or self._untidy or self._closing)
                untidy, self._untidy = self._untidy, False
            if untidy:
                _give_back_memory()
            if not self.batch.step() and self._closing:
                return

    def _forget(self, job: Job) -> None:
        if job in self._jobs:
            self._jobs.discard(job)
            job._pieces.put_nowait(None)


def _give_back_memory() -> None:
    """After large prompts glibc keeps what its threads freed, hundreds of megabytes."""
    gc.collect()  # a refusal's traceback holds the prompt, in a circle
    give_back()
