"""What every request passes before a route sees it: whom it is for, how large it is, who sends it.

The order matters: nothing of a body is read, and no key compared, for a request that is refused by
its headers.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rabbitllm.serving.errors import ApiError, response

BODY_SECONDS = 30.0
"""Time in which a body arrives."""

HEALTH = "/health"
"""The path that needs no key: it says that the server is there, and nothing else."""

LINGER = 5.0
"""Seconds in which what a refused client still sends is thrown away."""


@dataclass(frozen=True)
class Admission:
    """Who may ask.

    Attributes:
        api_key: what clients must present as a bearer token; None lets everybody in.
        hosts: names by which browsers may ask, besides localhost and addresses; None allows all. A
            page of somebody's else can point its own name at this machine and ask by it.
    """

    api_key: str | None
    hosts: Collection[str] | None


@dataclass(frozen=True)
class Gate:
    """ASGI middleware; it hands bodies on whole.

    Attributes:
        app: what is behind it.
        admission: who may ask.
        body_size: the most bytes of a body.
        over: called when a request that was handed on is over, with the size of its body.
    """

    app: ASGIApp
    admission: Admission
    body_size: int
    over: Callable[[int], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuses the request, or hands it on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            headers = Headers(scope=scope)
            self._check_host(headers.get("host", ""))
            self._check_length(headers.get("content-length", ""))
            if scope["path"] != HEALTH:
                self._check_key(headers)
            body = await asyncio.wait_for(self._read(receive), BODY_SECONDS)
        except ApiError as error:
            return await _refuse(response(error), scope, receive, send)
        except asyncio.TimeoutError:
            late = ApiError(408, f"The body did not arrive within {BODY_SECONDS:g} seconds.")
            return await _refuse(response(late, {"Connection": "close"}), scope, receive, send)
        if body is not None:
            try:
                await self.app(scope, _Whole(body, receive), send)
            finally:
                self.over(len(body))

    def _check_host(self, host: str) -> None:
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        hosts = self.admission.hosts
        if hosts is not None and not _is_address(name) and name.lower() not in hosts:
            raise ApiError(
                403,
                f"This server is not called {name!r}. If it should be: --allowed-host {name}",
                "host_not_allowed",
            )

    def _check_length(self, length: str) -> None:
        if length.isdecimal() and int(length) > self.body_size:
            raise self._too_large()

    def _check_key(self, headers: Headers) -> None:
        key = self.admission.api_key
        if key is None:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        # Starlette reads headers as Latin-1, an argument's odd bytes are surrogates.
        shown, expected = token.strip().encode("latin-1"), os.fsencode(key)
        if scheme.lower() != "bearer" or not hmac.compare_digest(shown, expected):
            raise ApiError(401, "No valid API key was given.", "invalid_api_key")

    async def _read(self, receive: Receive) -> bytes | None:
        """The body; None when the client left instead."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > self.body_size:
                raise self._too_large()
            more = message.get("more_body", False)
        return bytes(body)

    def _too_large(self) -> ApiError:
        return ApiError(413, f"A request may have {self.body_size} bytes.", "request_too_large")


class _Whole:
    """A `receive` of a body that is there, and of what comes after."""

    def __init__(self, body: bytes, rest: Receive) -> None:
        self._first: Message | None = {"type": "http.request", "body": body, "more_body": False}
        self._rest = rest

    async def __call__(self) -> Message:
        if (message := self._first) is None:
            return await self._rest()
        self._first = None
        return message


async def _refuse(answer: Response, scope: Scope, receive: Receive, send: Send) -> None:
    """Answers, and lets the client finish: who is cut off while sending sees no answer."""

    async def send_all_but_the_end(message: Message) -> None:
        await send({**message, "more_body": True})

    await answer(scope, receive, send_all_but_the_end)
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(_discard(receive), LINGER)
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True
