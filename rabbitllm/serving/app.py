"""The routes of OpenAI's HTTP interface, answered by one model."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from typing_extensions import override

from rabbitllm.model import StreamedModel
from rabbitllm.serving.errors import ApiError, error_body, handle_errors
from rabbitllm.serving.replies import CHAT, COMMENT, COMPLETION, DONE, Reply, Shape, event
from rabbitllm.serving.requests import ChatRequest, CompletionRequest
from rabbitllm.serving.worker import Job, Worker
from rabbitllm.text import encode_chat, encode_text, room

logger = logging.getLogger(__name__)

PATIENCE = 15.0
"""Seconds without text after which a stream says that it goes on, so that nobody hangs up."""
CLIENT_LEFT = 499
"""nginx's status for a client that left before the answer; nobody is there to read it."""
COMPLETION_TOKENS = 16
"""OpenAI's own default of `max_tokens` in /v1/completions."""


def create_app(
    model: StreamedModel, name: str, *, api_key: str | None, waiting: int, max_new_tokens: int
) -> FastAPI:
    """The application.

    Args:
        model: what answers.
        name: what clients call it.
        api_key: what they must present as a bearer token; None lets everybody in.
        waiting: how many requests may wait while one is answered; others get status 429.
        max_new_tokens: the most tokens of a chat answer whose request sets no limit.
    """
    routes = Routes(model, name, Worker(model, waiting), max_new_tokens)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        routes.worker.close()

    async def authorise(request: Request) -> None:
        shown = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key and not secrets.compare_digest(shown.encode(), api_key.encode()):
            raise ApiError(401, "No valid API key was given.", "invalid_api_key")

    router = APIRouter(prefix="/v1", dependencies=[Depends(authorise)])
    router.add_api_route("/models", routes.models)
    router.add_api_route("/models/{asked:path}", routes.model)
    router.add_api_route("/chat/completions", routes.chat, methods=["POST"], response_model=None)
    router.add_api_route("/completions", routes.completions, methods=["POST"], response_model=None)
    app = FastAPI(title="RabbitLLM", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(router)
    handle_errors(app)
    return app


class Routes:
    """What each route does; arguments as `create_app`."""

    def __init__(
        self, model: StreamedModel, name: str, worker: Worker, max_new_tokens: int
    ) -> None:
        self.worker = worker
        self._model = model
        self._name = name
        self._max_new_tokens = max_new_tokens
        self._created = int(time.time())

    async def models(self) -> dict[str, Any]:
        """GET /v1/models."""
        return {"object": "list", "data": [await self.model(self._name)]}

    async def model(self, asked: str) -> dict[str, Any]:
        """GET /v1/models/NAME."""
        if asked != self._name:
            raise ApiError(404, f"No model {asked!r} here, only {self._name!r}.", "model_not_found")
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "rabbitllm",
        }

    async def chat(self, body: ChatRequest, request: Request) -> Response:
        """POST /v1/chat/completions."""
        if not self._model.tokenizer.chat_template:
            raise ApiError(400, "This model has no chat template. Use /v1/completions.")
        messages = [message.as_template_input() for message in body.messages]
        limit = body.limit or self._max_new_tokens
        return await self._answer(
            request, body, CHAT, lambda: encode_chat(self._model, messages), limit
        )

    async def completions(self, body: CompletionRequest, request: Request) -> Response:
        """POST /v1/completions."""
        limit = body.limit or COMPLETION_TOKENS
        return await self._answer(request, body, COMPLETION, lambda: self._plain(body), limit)

    def _plain(self, body: CompletionRequest) -> torch.Tensor:
        """Token ids [1, tokens] of a completion's prompt, which may be token ids already."""
        if isinstance(body.prompt, str):
            return encode_text(self._model, body.prompt)
        vocabulary = self._model.config.get_text_config().vocab_size
        ids = torch.tensor([body.prompt], dtype=torch.long, device=self._model.device)
        if not ((ids >= 0) & (ids < vocabulary)).all():
            raise ValueError(f"prompt: token ids go from 0 to {vocabulary - 1}")
        return ids

    async def _answer(
        self,
        request: Request,
        body: ChatRequest | CompletionRequest,
        shape: Shape,
        encode: Callable[[], torch.Tensor],
        limit: int,
    ) -> Response:
        await self.model(body.model)
        try:
            prompt = encode()
            room(self._model, prompt.shape[1])
        except ValueError as error:
            raise ApiError(400, str(error)) from error
        job = self.worker.submit(
            prompt, body.seed, max_new_tokens=limit, stop=body.stops, **body.sampling()
        )
        reply = Reply(shape, self._name)
        if body.stream:
            return _EventStream(job, reply, body.include_usage)
        watcher = asyncio.create_task(_cancel_when_gone(request.receive, job))
        text = "".join([piece async for piece in job.pieces()])
        watcher.cancel()
        if job.cancelled:
            return Response(status_code=CLIENT_LEFT)
        return JSONResponse(reply.whole(text, job.answer.result()))


class _EventStream(StreamingResponse):
    """A job's text as server-sent events; the job ends when the client leaves."""

    def __init__(self, job: Job, reply: Reply, include_usage: bool) -> None:
        super().__init__(_events(job, reply, include_usage), media_type="text/event-stream")
        self._job = job

    @override
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(_cancel_when_gone(receive, self._job))
        try:
            await super().__call__(scope, receive, send)
        finally:
            watcher.cancel()
            self._job.cancel()


async def _events(job: Job, reply: Reply, include_usage: bool) -> AsyncIterator[str]:
    shape = reply.shape
    if shape.opening:
        yield reply.chunk(shape.opening)
    async for piece in job.pieces(PATIENCE):
        yield reply.chunk(shape.change(piece)) if piece else COMMENT
    if job.cancelled:
        return
    if error := job.answer.exception():
        logger.error("A generation failed", exc_info=error)
        yield event(error_body(f"{type(error).__name__}: {error}", "server_error"))
        return
    answer = job.answer.result()
    yield reply.chunk(shape.change(""), answer.finish_reason)
    if include_usage:
        yield reply.counts(answer)
    yield DONE


async def _cancel_when_gone(receive: Receive, job: Job) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    job.cancel()
