"""A server under attack, and its good clients."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

KEY, NAME = "a secret", "soaked"
LIMIT = 300.0
"""Seconds after which a good client counts as not answered."""
BODY = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Say something."}],
    "temperature": 0,
    "max_tokens": 8,
}


@dataclass
class Soak:
    """A server under attack.

    Attributes:
        port: where it listens on 127.0.0.1.
        left: connections that clients opened and forgot.
        statuses: how often each kind of request got which status; 0 is none.
        seconds: that good clients waited for each answer.
        listing: that GET /v1/models took each time.
        wrong: what should not have happened.
        before: what the server's process held, see `server.count`.
        early: the same, after `measure.EARLY` of the requests.
        after: the same, when all was over.
        elapsed: seconds that all requests took together.
        ending: seconds from SIGTERM to the server's end.
    """

    port: int
    left: list[asyncio.StreamWriter] = field(default_factory=list)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    listing: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    early: dict[str, float] = field(default_factory=dict)
    after: dict[str, float] = field(default_factory=dict)
    elapsed: float = 0.0
    ending: float = 0.0

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection, which ends without ceremony."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body of the response; status 0 if there was none."""
        async with self.connection() as (reader, writer):
            try:
                writer.write(request)
                await writer.drain()
                answer = await reader.read()
            except ConnectionError:
                return 0, b""
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split(b" ")[1]) if head else 0, body

    async def good(self, expected: str | None = None) -> str:
        """A good client's request; its text must be the expected one."""
        begun = time.perf_counter()
        status, body = await asyncio.wait_for(self.ask(post(BODY)), LIMIT)
        self.seconds.append(time.perf_counter() - begun)
        self.statuses["good", status] += 1
        text = json.loads(body)["choices"][0]["message"]["content"] if status == 200 else ""
        if status != 200 or expected not in (None, text):
            self.wrong.append(f"a good client got status {status}, {text!r}")
        return str(text)

    async def list_models(self) -> None:
        """Asks for the models, over and over."""
        while True:
            begun = time.perf_counter()
            await self.ask(head("GET /v1/models"))
            self.listing.append(time.perf_counter() - begun)
            await asyncio.sleep(0.05)


def head(line: str, *headers: str, key: str = KEY) -> bytes:
    """The head of a request after which the connection closes."""
    fixed = ("Host: localhost", f"Authorization: Bearer {key}", "Connection: close")
    return "\r\n".join([f"{line} HTTP/1.1", *fixed, *headers, "", ""]).encode()


def post(
    body: object, key: str = KEY, length: int | None = None, path: str = "/v1/chat/completions"
) -> bytes:
    """A request, for a chat as a rule, which may say that it is longer than it is."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    said = f"Content-Length: {len(content) if length is None else length}"
    kind = "Content-Type: application/json"
    return head(f"POST {path}", kind, said, key=key) + content
