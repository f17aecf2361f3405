"""Errors in the shape that OpenAI's clients turn into exceptions."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from rabbitllm.serving.worker import BusyError

INVALID = "invalid_request_error"
RETRY_AFTER = "5"
"""Seconds that a client is asked to wait when the queue is full."""


class ApiError(Exception):
    """An error that a client gets to see.

    Args:
        status: of the response.
        message: what is wrong, and the way out.
        code: OpenAI's `code`, if there is one.
    """

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def error_body(message: str, kind: str = INVALID, code: str | None = None) -> dict[str, Any]:
    """The body of an error, also as an event of a stream that fails midway."""
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def handle_errors(app: FastAPI) -> None:
    """Makes every error of the application come out in this shape."""

    def handle(kind: type[Exception], respond: Callable[[Any], JSONResponse]) -> None:
        async def handler(request: Request, error: Exception) -> JSONResponse:
            return respond(error)

        app.add_exception_handler(kind, handler)

    handle(ApiError, lambda e: JSONResponse(error_body(str(e), code=e.code), e.status))
    handle(HTTPException, lambda e: JSONResponse(error_body(str(e.detail)), e.status_code))
    handle(RequestValidationError, lambda e: JSONResponse(error_body(_where(e)), 400))
    handle(BusyError, _busy)
    handle(
        Exception,
        lambda e: JSONResponse(error_body(f"{type(e).__name__}: {e}", "server_error"), 500),
    )


def _busy(_: BusyError) -> JSONResponse:
    message = "Another generation is running and the queue is full. Try again later."
    body = error_body(message, "rate_limit_error", "queue_full")
    return JSONResponse(body, 429, {"Retry-After": RETRY_AFTER})


def _where(error: RequestValidationError) -> str:
    """The first thing that is wrong with a request, and where in it."""
    first = error.errors()[0]
    path = ".".join(str(step) for step in first["loc"] if step != "body")
    reason = first["msg"].removeprefix("Value error, ")
    return f"{path}: {reason}" if path else reason
