"""What misbehaving clients do, and what the server may answer to it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from benchmarks.serving_soak.clients import BODY, LIMIT, Soak, head, post

HUGE = 1 << 30
"""Bytes that a body says it has."""


def refused(request: bytes) -> Callable[[Soak], Coroutine[Any, Any, int]]:
    """A misdeed that is one bad request."""

    async def misdeed(soak: Soak) -> int:
        return (await soak.ask(request))[0]

    return misdeed


async def dawdle(soak: Soak) -> int:
    """Sends a body byte by byte, and leaves in the middle."""
    async with soak.connection() as (_, writer):
        writer.write(post(b"", length=1_000))
        for _ in range(10):
            writer.write(b" ")
            await asyncio.sleep(0.1)
    return 0


async def abandon(soak: Soak) -> int:
    """Asks for a long stream, and leaves when it begins."""
    async with soak.connection() as (reader, writer):
        writer.write(post(BODY | {"stream": True, "max_tokens": 500}))
        return int((await reader.readline()).split(b" ")[1])


async def forget(soak: Soak) -> int:
    """Leaves a connection open with half a head in it."""
    _, writer = await asyncio.open_connection("127.0.0.1", soak.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: local")
    soak.left.append(writer)
    return 0


async def hang_up_halfway(soak: Soak) -> int:
    """Asks, and closes its own half of the connection at once."""
    async with soak.connection() as (reader, writer):
        writer.write(post(BODY))
        writer.write_eof()
        await reader.read()
    return 0


async def flood(soak: Soak) -> int:
    """Pours megabytes of a body into the server, without saying how many."""
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    request = head(
        "POST /v1/chat/completions", "Content-Type: application/json", "Transfer-Encoding: chunked"
    )
    return (await soak.ask(request + 32 * chunk + b"0\r\n\r\n"))[0]


MISDEEDS: dict[str, tuple[Callable[[Soak], Coroutine[Any, Any, int]], set[int]]] = {
    "wrong key": (refused(post(BODY, key="wrong")), {401}),
    "bad JSON": (refused(post(b'{"model": [[[')), {400}),
    "unsupported": (refused(post(BODY | {"logit_bias": {"1": 5}})), {400}),
    "huge": (refused(post(b"x" * 0x100000, length=HUGE)), {413}),
    "flood": (flood, {413}),
    "no HTTP": (refused(b"\x16\x03\x01 hello\r\n\r\n"), {400}),
    "dawdle": (dawdle, {0}),
    "abandon": (abandon, {200}),
    "forget": (forget, {0}),
    "hang up halfway": (hang_up_halfway, {0}),
}
"""Misbehaving clients, and the statuses that they may get; 0 where the connection ends instead."""


async def misbehave(soak: Soak, name: str) -> None:
    """Does one of the misdeeds."""
    misdeed, allowed = MISDEEDS[name]
    status = await asyncio.wait_for(misdeed(soak), LIMIT)
    soak.statuses[name, status] += 1
    if status not in allowed:
        soak.wrong.append(f"{name!r} got status {status}")
