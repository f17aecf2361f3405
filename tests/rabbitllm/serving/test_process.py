"""The process that serves, with a small application in the model's place: limits and the end."""

from __future__ import annotations

import http.client
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.patience import PATIENCE

CLIENT_SECONDS = 1.0
"""Seconds that the server waits for a client."""
LARGE = 64 << 20
"""Bytes of a response that is more than kernels keep for a reader."""
SERVER = f"""
import asyncio, socket, sys, time
from rabbitllm.serving import connections, server

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({{"type": "lifespan.startup.complete"}})
        await receive()
        if "stuck" in sys.argv:
            time.sleep(6000)  # as a layer or a tokenizer under way
        return await send({{"type": "lifespan.shutdown.complete"}})
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    if scope["path"] == "/wait":
        await send({{"type": "http.response.body", "body": b"x", "more_body": True}})
        await asyncio.sleep(6000)
    body = b"x" * (scope["path"] == "/large" and {LARGE} or 5)
    await send({{"type": "http.response.body", "body": body}})

connections.PATIENCE = float(sys.argv[1])
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
server.serve(app, listener)
"""

WAIT = b"GET /wait HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""Asks for an answer that begins, and goes on for minutes."""

Start = Callable[..., tuple[subprocess.Popen[str], int]]


@pytest.fixture
def start() -> Iterator[Start]:
    """`start(*arguments, files=number)` -> a server that may open as many files, and its port."""
    with ExitStack() as stack:

        def started(
            *arguments: str, files: int = 256, patience: float = PATIENCE
        ) -> tuple[subprocess.Popen[str], int]:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVER, str(patience), *arguments],
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (files, files)),
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            assert process.stdout
            stack.callback(process.stdout.close)
            return process, int(process.stdout.readline())

        yield started


def ask(port: int, path: str = "/", address: str = "127.0.0.1") -> bytes:
    """The body of the response to a request that comes from this address."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=PATIENCE, source_address=(address, 0)
    )
    connection.request("GET", path)
    return connection.getresponse().read()


def open_one(port: int, begun: bytes = b"") -> socket.socket:
    """A connection that has sent this much of a request."""
    made = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)
    made.sendall(begun)
    return made


def received(connection: socket.socket) -> int:
    """Bytes that came until the other side ended the connection."""
    total = 0
    try:
        while part := connection.recv(1 << 20):
            total += len(part)
    except ConnectionResetError:
        pass
    return total


def _begins(connection: socket.socket) -> bool:
    """Whether an answer comes."""
    try:
        return bool(connection.recv(1))
    except ConnectionResetError:
        return False


def _goes_on(connection: socket.socket) -> bool:
    """Whether the other side keeps the connection open."""
    connection.setblocking(False)
    try:
        while connection.recv(1 << 10):
            pass
    except BlockingIOError:
        return True
    return False


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: loc", b"GET / HTTP/1.1\r\nX: "])
def test_who_does_not_ask_in_time_is_dropped(start: Start, begun: bytes) -> None:
    _, port = start(patience=CLIENT_SECONDS)
    with open_one(port, begun) as silent:
        assert received(silent) == 0
    assert ask(port) == b"xxxxx"


def test_who_drips_a_head_is_dropped(start: Start) -> None:
    _, port = start(patience=CLIENT_SECONDS)
    with open_one(port, b"GET / HTTP/1.1\r\nX: ") as slow:
        slow.settimeout(0.05)
        dropped = False
        for _ in range(PATIENCE * 20):
            try:
                slow.send(b"a")
                dropped = slow.recv(1) == b""
            except TimeoutError:
                continue
            except OSError:
                dropped = True
            if dropped:
                break
        assert dropped


def test_who_does_not_take_its_answer_is_dropped(start: Start) -> None:
    _, port = start(patience=CLIENT_SECONDS)
    with open_one(port, b"GET /large HTTP/1.1\r\nHost: localhost\r\n\r\n") as deaf:
        deaf.recv(1)
        with open_one(port) as silent:  # came later, so the other is gone when this one is
            received(silent)
        assert received(deaf) < LARGE


def test_an_answer_that_takes_longer_than_patience_comes(start: Start) -> None:
    _, port = start(patience=CLIENT_SECONDS)
    with open_one(port, WAIT) as patient:
        for _ in range(2):
            with open_one(port) as silent:
                received(silent)
        assert _goes_on(patient)


def test_silent_connections_do_not_keep_others_out(start: Start) -> None:
    _, port = start(files=120)
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(open_one(port))
        assert ask(port) == b"xxxxx"
    assert ask(port) == b"xxxxx"


def test_one_address_takes_half_of_the_places(start: Start) -> None:
    _, port = start(files=64)
    with ExitStack() as stack:
        answered = 0
        while _begins(stack.enter_context(open_one(port, WAIT))):
            answered += 1
        assert 2 <= answered < 16
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(port)
        assert ask(port, address="127.0.0.2") == b"xxxxx"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_whatever_is_under_way(start: Start, number: signal.Signals) -> None:
    process, port = start("stuck")
    with open_one(port, WAIT), open_one(port):
        assert ask(port) == b"xxxxx"
        process.send_signal(number)
        assert process.wait(PATIENCE) == 128 + number


def test_sigterm_ends_an_idle_one_as_it_ends_others(start: Start) -> None:
    process, port = start()
    assert ask(port) == b"xxxxx"
    process.terminate()
    assert process.wait(PATIENCE) == -signal.SIGTERM
