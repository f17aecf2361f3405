"""Errors in the shape that OpenAI's clients turn into exceptions."""

import json
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

INVALID = "invalid_request_error"
RETRY_AFTER = "5"
"""Seconds that a client is asked to wait when the queue is full."""


class ApiError(Exception):
    """An error that a client gets to see.

    Args:
        status: of the response.
        message: what is wrong, and the way out.
        code: OpenAI's `code`, if there is one.
        param: the field of the request that is wrong, if it is one.
    """

    def __init__(
        self, status: int, message: str, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param


class BusyError(Exception):
    """Every place in the queue is taken."""


def error_body(
    message: str, kind: str = INVALID, code: str | None = None, param: str | None = None
) -> dict[str, Any]:
    """The body of an error, also as an event of a stream that fails midway."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def failure(error: BaseException) -> dict[str, Any]:
    """The body of an error that is nobody's request's fault."""
    return error_body(f"{type(error).__name__}: {error}", "server_error")


def response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """A response with the error's status, and the body that OpenAI's clients read."""
    return _json(error_body(str(error), code=error.code, param=error.param), error.status, headers)


def handle_errors(app: FastAPI) -> None:
    """Makes every error of the application come out in this shape."""

    def handle(kind: type[Exception], respond: Callable[[Any], Response]) -> None:
        async def handler(request: Request, error: Exception) -> Response:
            return respond(error)

        app.add_exception_handler(kind, handler)

    handle(ApiError, response)
    handle(HTTPException, lambda e: _json(error_body(str(e.detail)), e.status_code, e.headers))
    handle(BusyError, _busy)
    handle(Exception, lambda e: _json(failure(e), 500))


def _busy(_: BusyError) -> Response:
    message = "Others are being answered and the queue is full. Try again later."
    body = error_body(message, "rate_limit_error", "queue_full")
    return _json(body, 429, {"Retry-After": RETRY_AFTER})


def _json(body: dict[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    """In ASCII: a message may quote a request that is no text in any encoding."""
    return Response(json.dumps(body), status, headers, "application/json")
