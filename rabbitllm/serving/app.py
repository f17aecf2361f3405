"""The routes of OpenAI's HTTP interface, answered by one model."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from rabbitllm.errors import BudgetError
from rabbitllm.prompt import context_length
from rabbitllm.serving.aside import Aside, TimeLimitError
from rabbitllm.serving.errors import ApiError, handle_errors
from rabbitllm.serving.event_stream import EventStream, cancel_when_gone
from rabbitllm.serving.gate import HEALTH, Admission, Gate
from rabbitllm.serving.prompts import ENDPOINTS, Prompts
from rabbitllm.serving.replies import Reply, Shape
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
    for path, (kind, _) in ENDPOINTS.items():
        app.add_api_route(
            path,
            routes.answer,
            methods=["POST"],
            response_model=None,
            openapi_extra=_described(kind),
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
        self._name = name
        self._prompts = Prompts(worker.model, name, max_new_tokens)
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
        self._prompts.check_name(asked)
        return {
            "id": self._name,
            "object": "model",
            "created": self._created,
            "owned_by": "rabbitllm",
        }

    async def answer(self, request: Request) -> Response:
        """POST to one of `ENDPOINTS`."""
        return await self._answer(request, *ENDPOINTS[request.url.path])

    async def _begin(self, kind: type[Kind], shape: Shape, body: bytes) -> tuple[Kind, Reply, Job]:
        """What a body asks for, what answers become, and what gives them."""
        with self._worker.reserve(len(body)) as job:
            try:
                asked, prompt, options = await self._aside.run(
                    lambda: self._prompts.understand(kind, read(body))
                )
            except TimeLimitError as error:
                raise ApiError(400, f"{error} to read the request. Shorten it.") from error
            self._worker.start(job, prompt, options)
        return asked, self._prompts.reply(asked, shape, prompt), job

    async def _answer(self, request: Request, kind: type[Kind], shape: Shape) -> Response:
        _check_json(request.headers.get("content-type", ""))
        asked, reply, job = await self._begin(kind, shape, await request.body())
        if asked.stream:
            return EventStream(job, reply, asked.stream_options.include_usage)
        watcher = asyncio.create_task(cancel_when_gone(request.receive, job))
        async for _ in job.pieces():
            pass
        watcher.cancel()
        if job.cancelled:
            return Response(status_code=CLIENT_LEFT)
        error = job.error
        if isinstance(error, (BudgetError, ValueError)):  # too long a prompt for it, as a rule
            raise ApiError(400, str(error), param=kind.source) from error
        if error:
            raise error
        return JSONResponse(reply.whole(job.rows))


def _check_json(content_type: str) -> None:
    """Refuses what a page on another site may send without asking the browser's leave."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(400, "Send the request as JSON, with Content-Type: application/json.")
