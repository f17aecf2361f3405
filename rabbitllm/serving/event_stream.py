"""An answer as server-sent events, as long as its client is there."""

import asyncio
import logging
from collections.abc import AsyncIterator

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from rabbitllm.serving.errors import failure
from rabbitllm.serving.parts import Splitter
from rabbitllm.serving.replies import COMMENT, DONE, Reply, event
from rabbitllm.serving.worker import Job

logger = logging.getLogger(__name__)

KEEP_ALIVE = 15.0
"""Seconds without text after which a stream says that it goes on, so that nobody hangs up."""


class EventStream(StreamingResponse):
    """A job's text as server-sent events; the job ends when the client leaves."""

    def __init__(self, job: Job, reply: Reply, include_usage: bool) -> None:
        super().__init__(_events(job, reply, include_usage), media_type="text/event-stream")
        self._job = job

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(cancel_when_gone(receive, self._job))
        try:
            await super().__call__(scope, receive, send)
        finally:
            watcher.cancel()
            self._job.cancel()


async def _events(job: Job, reply: Reply, include_usage: bool) -> AsyncIterator[str]:
    for index in range(len(job.rows)):
        for chunk in reply.opening(index):
            yield chunk
    sent = [0] * len(job.rows)
    splitters = [Splitter(reply.marks) for _ in job.rows]
    async for piece in job.pieces(KEEP_ALIVE):
        parts = list(splitters[piece.index].feed(piece.text))
        if not parts:
            yield COMMENT
            continue
        row, begun = job.rows[piece.index], sent[piece.index]
        sent[piece.index] = piece.tokens
        yield reply.chunk(piece.index, parts, row, slice(begun, piece.tokens))
    if job.cancelled:
        return
    if error := job.error:
        logger.error("A generation failed", exc_info=error)
        yield event(failure(error))
        return
    for index, row in enumerate(job.rows):
        for chunk in reply.end(index, row, splitters[index], slice(sent[index], None)):
            yield chunk
    if include_usage:
        yield reply.counts(job.rows)
    yield DONE


async def cancel_when_gone(receive: Receive, job: Job) -> None:
    """Ends a job once its client has left; to be cancelled when the job is over."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.cancel()
