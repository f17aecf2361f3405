"""Many clients at one server, half of them misbehaving: what it answers, and what it keeps.

    python -m benchmarks.serving_soak MODEL

Every other request is a good one, whose answer must be the one that a lone client got. The others
come from `MISDEEDS`. Memory, threads and descriptors of the server are counted before and after.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import psutil

KEY, NAME = "a secret", "soaked"
LIMIT = 300.0
"""Seconds after which a good client counts as not answered."""
SETTLING = 60.0
"""Seconds in which the server closes what misbehaving clients left open."""
HUGE = 1 << 30
"""Bytes that a body says it has."""
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
        before: what the server's process held, see `count`.
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


def post(body: object, key: str = KEY, length: int | None = None) -> bytes:
    """A chat request, which may say that it is longer than it is."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    said = f"Content-Length: {len(content) if length is None else length}"
    kind = "Content-Type: application/json"
    return head("POST /v1/chat/completions", kind, said, key=key) + content


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
    "unsupported": (refused(post(BODY | {"n": 2})), {400}),
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


async def run(soak: Soak, requests: int, clients: int) -> None:
    """Sends the requests, by as many clients at once."""
    expected = await soak.good()
    names = list(MISDEEDS)
    turns = iter(range(requests))

    async def client() -> None:
        for turn in turns:
            if turn % 2:
                await misbehave(soak, names[turn // 2 % len(names)])
            else:
                await soak.good(expected)

    listing = asyncio.create_task(soak.list_models())
    await asyncio.gather(*(client() for _ in range(clients)))
    listing.cancel()


@contextlib.asynccontextmanager
async def server(arguments: list[str], clients: int) -> AsyncIterator[tuple[int, psutil.Process]]:
    """A server of its own: its port and its process."""
    command = [sys.executable, "-m", "rabbitllm", "serve", *arguments, "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command,
        *("--name", NAME, "--queue", str(clients)),
        env=os.environ | {"RABBITLLM_API_KEY": KEY},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    printed = b""
    try:
        while not (found := re.search(rb"http://127\.0\.0\.1:(\d+)/v1", printed)):
            line = await process.stderr.readline()
            if not line:
                raise RuntimeError(f"The server did not start: {printed.decode()}")
            printed += line
        draining = asyncio.create_task(process.stderr.read())
        yield int(found[1]), psutil.Process(process.pid)
        process.terminate()
        await asyncio.wait_for(process.wait(), LIMIT)
        await draining
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def count(process: psutil.Process) -> dict[str, float]:
    """What a process holds."""
    with process.oneshot():
        return {
            "RSS MiB": process.memory_info().rss / 2**20,
            "threads": process.num_threads(),
            "descriptors": process.num_fds(),
        }


async def settled(process: psutil.Process, before: dict[str, float]) -> dict[str, float]:
    """What the process holds once it has closed what clients left, or after `SETTLING` seconds."""
    end = time.monotonic() + SETTLING
    while (after := count(process))["descriptors"] > before["descriptors"]:
        if time.monotonic() > end:
            break
        await asyncio.sleep(0.5)
    return after


async def soak(arguments: list[str], requests: int, clients: int) -> Soak:
    """Runs everything.

    Args:
        arguments: of `rabbitllm serve`.
        requests: how many, good and bad.
        clients: how many at once.
    """
    async with server(arguments, clients) as (port, process):
        soaked = Soak(port)
        for _ in range(3):  # so that what is made at first use is there
            await soaked.good()
        soaked.before = count(process)
        begun = time.perf_counter()
        await run(soaked, requests, clients)
        soaked.elapsed = time.perf_counter() - begun
        soaked.after = await settled(process, soaked.before)
        for writer in soaked.left:
            writer.close()
        begun = time.perf_counter()
    soaked.ending = time.perf_counter() - begun
    return soaked


def report(soaked: Soak) -> str:
    """The figures, a line each."""
    listing = sorted(soaked.listing)
    return "\n".join(
        [
            f"{sum(soaked.statuses.values())} requests in {soaked.elapsed:.1f} s",
            *(f"{n} times {status}: {name}" for (name, status), n in soaked.statuses.items()),
            f"good answers: slowest {max(soaked.seconds):.2f} s",
            f"/v1/models: {len(listing)} times, median {listing[len(listing) // 2] * 1e3:.0f} ms, "
            f"slowest {listing[-1] * 1e3:.0f} ms",
            *(
                f"{name}: {n:.0f} before, {soaked.after[name]:.0f} after"
                for name, n in soaked.before.items()
            ),
            f"SIGTERM: ended after {soaked.ending:.1f} s",
            *(f"WRONG: {line}" for line in soaked.wrong),
        ]
    )


def main() -> int:
    """Runs the soak; status 1 if something was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--requests", type=int, default=1_000, help="good and bad (%(default)s)")
    parser.add_argument("--clients", type=int, default=64, help="at once (%(default)s)")
    parser.add_argument("serve", nargs="+", help="MODEL and other arguments of `rabbitllm serve`")
    arguments, more = parser.parse_known_args()
    soaked = asyncio.run(soak(arguments.serve + more, arguments.requests, arguments.clients))
    print(report(soaked))
    return bool(soaked.wrong)


if __name__ == "__main__":
    sys.exit(main())
