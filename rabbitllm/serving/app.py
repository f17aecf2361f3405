"""The routes of OpenAI's HTTP interface, answered by one model."""

import asyncio
import contextlib
import reprlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from rabbitllm.errors import BudgetError
from rabbitllm.prompt import (
    check_template_kwargs,
    context_length,
    encode_chat,
    encode_ids,
    encode_text,
)
from rabbitllm.serving.aside import Aside, TimeLimitError
from rabbitllm.serving.errors import ApiError, handle_errors
from rabbitllm.serving.event_stream import EventStream, cancel_when_gone
from rabbitllm.serving.gate import HEALTH, Admission, Gate
from rabbitllm.serving.replies import CHAT, COMPLETION, Reply, Shape
from rabbitllm.serving.requests import ChatRequest, CompletionRequest, Kind, read
from rabbitllm.serving.worker import Job, Worker

CLIENT_LEFT = 499
"""nginx's status for a client that left before the answer; nobody is there to read it."""
PREPARATION = 10.0
"""Seconds in which a request becomes token ids, and in which its turn for that comes."""
BYTES, BYTES_PER_TOKEN, MOST_BYTES = 1 << 16, 16, 1 << 23
"""Of a request: for its fields, for each token of the model's context, and in all. Text takes 4 a
token, escaped Chinese 9."""
LARGE = 1 << 14
"""Bytes of a request that leaves megabytes behind."""
UNUSABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a chat template raises at messages that it was not written for."""


def create_app(worker: Worker, name: str, admission: Admission, max_new_tokens: int) -> FastAPI:
    """The application.

    Args:
        worker: what answers; it is closed when the application ends.
        name: what clients call its model.
        admission: who may ask.
        max_new_tokens: the most tokens of a chat answer whose request sets no limit.
    """
    routes = Routes(worker, name, max_new_tokens)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    app = FastAPI(title="RabbitLLM", lifespan=lifespan, docs_url=None, redoc_url=None)
    size = min(MOST_BYTES, BYTES + BYTES_PER_TOKEN * context_length(worker.model))
    app.add_middleware(Gate, admission=admission, body_size=size, over=routes.tidy)
    app.add_api_route(HEALTH, routes.health)
    app.add_api_route("/metrics", routes.metrics, response_model=None)
    app.add_api_route("/v1/models", routes.models)
    app.add_api_route("/v1/models/{asked:path}", routes.model)
    for path, route, kind in (
        ("/v1/chat/completions", routes.chat, ChatRequest),
        ("/v1/completions", routes.completions, CompletionRequest),
    ):
        app.add_api_route(
            path, route, methods=["POST"], response_model=None, openapi_extra=_described(kind)
        )
    handle_errors(app)
    return app


def _described(kind: type[ChatRequest] | type[CompletionRequest]) -> dict[str, Any]:
    """The body of such a request, for /openapi.json."""
    return {"requestBody": {"content": {"application/json": {"schema": kind.model_json_schema()}}}}


class Routes:
    """What each route does; arguments as `create_app`."""

    def __init__(self, worker: Worker, name: str, max_new_tokens: int) -> None:
        self._worker = worker
        self._model = worker.model
        self._name = name
        self._max_new_tokens = max_new_tokens
        self._created = int(time.time())
        self._aside = Aside(PREPARATION)

    def tidy(self, size: int) -> None:
        """Called when a request of so many bytes is over."""
        if size > LARGE:
            self._worker.give_back_memory()

    async def health(self) -> dict[str, str]:
        """GET /health."""
        if not self._worker.alive:
            raise ApiError(503, "The thread that generates has ended. Restart the server.")
        return {"status": "ok"}

    async def metrics(self) -> Response:
        """GET /metrics."""
        return Response(self._worker.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def models(self) -> dict[str, Any]:
        """GET /v1/models."""
        return {"object": "list", "data": [await self.model(self._name)]}

    async def model(self, asked: str) -> dict[str, Any]:
        """GET /v1/models/NAME."""
        self._check_name(asked)
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "rabbitllm",
        }

    def _check_name(self, asked: str) -> None:
        if asked != self._name:
            raise ApiError(
                404,
                f"No model {reprlib.repr(asked)} here, only {self._name!r}.",
                "model_not_found",
                "model",
            )

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._answer(request, ChatRequest, CHAT, self._chat_prompt)

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._answer(request, CompletionRequest, COMPLETION, self._plain_prompt)

    def _chat_prompt(self, asked: ChatRequest) -> torch.Tensor:
        """Token ids [1, tokens] of a conversation."""
        if not self._model.tokenizer.chat_template:
            raise ApiError(400, "This model has no chat template. Use /v1/completions.")
        try:
            check_template_kwargs(self._model, asked.chat_template_kwargs)
        except ValueError as error:
            name = "chat_template_kwargs"
            raise ApiError(400, f"{name}: {error}", param=name) from error
        turns = [turn.as_template_input() for turn in asked.messages]
        return encode_chat(self._model, turns, asked.chat_template_kwargs)

    def _plain_prompt(self, asked: CompletionRequest) -> torch.Tensor:
        """Token ids [1, tokens] of a completion's prompt, which may be token ids already."""
        if isinstance(asked.prompt, str):
            return encode_text(self._model, asked.prompt)
        vocabulary = self._model.config.get_text_config().vocab_size
        if not all(0 <= token < vocabulary for token in asked.prompt):
            raise ValueError(f"token ids go from 0 to {vocabulary - 1}")
        return encode_ids(self._model, asked.prompt)

    def _understand(
        self, kind: type[Kind], body: bytes, encode: Callable[[Kind], torch.Tensor]
    ) -> tuple[Kind, torch.Tensor]:
        """What a body asks for, and its prompt as token ids [1, tokens]."""
        asked = read(kind, body)
        self._check_name(asked.model)
        try:
            prompt = encode(asked)
        except UNUSABLE as error:
            said = str(error) if isinstance(error, ValueError) else repr(error)
            raise ApiError(400, f"{kind.source}: {said}", param=kind.source) from error
        return asked, prompt

    async def _begin(
        self, kind: type[Kind], body: bytes, encode: Callable[[Kind], torch.Tensor]
    ) -> tuple[Kind, Job]:
        """What a body asks for, and the generation that answers it."""
        with self._worker.reserve() as job:
            try:
                asked, prompt = await self._aside.run(lambda: self._understand(kind, body, encode))
            except TimeLimitError as error:
                raise ApiError(400, f"{error} to read the request. Shorten it.") from error
            limit = asked.limit or self._max_new_tokens
            self._worker.start(
                job, prompt, asked.seed, max_new_tokens=limit, stop=asked.stop, **asked.sampling()
            )
        return asked, job

    async def _answer(
        self,
        request: Request,
        kind: type[Kind],
        shape: Shape,
        encode: Callable[[Kind], torch.Tensor],
    ) -> Response:
        _check_json(request.headers.get("content-type", ""))
        asked, job = await self._begin(kind, await request.body(), encode)
        reply = Reply(shape, self._name)
        if asked.stream:
            return EventStream(job, reply, asked.stream_options.include_usage)
        watcher = asyncio.create_task(cancel_when_gone(request.receive, job))
        text = "".join([piece async for piece in job.pieces()])
        watcher.cancel()
        if job.cancelled:
            return Response(status_code=CLIENT_LEFT)
        try:
            return JSONResponse(reply.whole(text, job.answer.result()))
        except BudgetError as error:  # too long a prompt for it
            raise ApiError(400, str(error), param=kind.source) from error


def _check_json(content_type: str) -> None:
    """Refuses what a page on another site may send without asking the browser's leave."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "Send the request as JSON, with Content-Type: application/json.")
