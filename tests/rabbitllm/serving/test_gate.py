"""Who and what is refused before anything of a body is read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

import pytest

from rabbitllm.serving import gate as module
from rabbitllm.serving.gate import Admission, Gate

KEY = "schlüssel 鍵"
SIZE = 100


class Exchange:
    """One request through a gate: what was read of it, what was answered, what came through."""

    def __init__(
        self,
        headers: dict[str, str | bytes] | None = None,
        parts: Iterable[bytes] = (b"{}",),
        *,
        api_key: str | None = None,
        hosts: set[str] | None = None,
    ) -> None:
        self.read = 0  # before the answer
        self.thrown_away = 0
        self.ended = False
        self.over: list[int] = []
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.error: dict[str, Any] = {}
        self.passed: bytes | None = None
        self._parts = list(parts)
        encoded = [
            (name.lower().encode(), text if isinstance(text, bytes) else text.encode())
            for name, text in ({"Host": "localhost"} | (headers or {})).items()
        ]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": encoded}
        gate = Gate(self._app, Admission(api_key, hosts), SIZE, self.over.append)
        asyncio.run(gate(scope, self._receive, self._send))

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.passed = (await receive())["body"]

    async def _receive(self) -> dict[str, Any]:
        if not self._parts:
            await asyncio.Event().wait()
        part = self._parts.pop(0)
        if self.status:
            self.thrown_away += len(part)
        else:
            self.read += len(part)
        if part == b"gone":
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(self._parts) or part == b""}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message["headers"])
        elif message["body"]:
            self.error = json.loads(message["body"])["error"]
        self.ended = not message.get("more_body", True)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_key_in_any_alphabet_opens(scheme: str) -> None:
    assert Exchange({"Authorization": f"{scheme} {KEY}"}, api_key=KEY).passed == b"{}"


@pytest.mark.parametrize(
    "shown",
    [None, "", KEY, f"Basic {KEY}", "Bearer", "Bearer x", f"Bearer {KEY}x", b"Bearer \xff\xfe"],
)
def test_nothing_else_does_and_its_body_is_not_read(shown: str | bytes | None) -> None:
    exchange = Exchange({} if shown is None else {"Authorization": shown}, api_key=KEY)
    assert (exchange.status, exchange.read, exchange.passed) == (401, 0, None)


def test_a_key_that_is_no_text_opens_too() -> None:
    key = b"k\xff".decode(errors="surrogateescape")  # as a command line's odd bytes arrive
    assert Exchange({"Authorization": b"Bearer k\xff"}, api_key=key).passed == b"{}"


def test_a_body_that_says_it_is_too_large_is_not_read_nor_its_key_compared() -> None:
    exchange = Exchange({"Content-Length": str(SIZE + 1)}, [b"x" * (SIZE + 1)], api_key=KEY)
    assert (exchange.status, exchange.read) == (413, 0)
    assert str(SIZE) in exchange.error["message"]


def test_a_body_that_does_not_say_is_read_up_to_the_limit() -> None:
    exchange = Exchange({}, [b"x" * 40] * 1_000)
    assert (exchange.status, exchange.read, exchange.passed) == (413, 120, None)
    assert exchange.thrown_away == 40_000 - 120, "the client could not send the rest"
    assert exchange.ended


def test_what_is_sent_after_a_refusal_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER", 0.05)
    exchange = Exchange({"Content-Length": str(SIZE + 1)}, [b"x", b""])
    assert (exchange.status, exchange.ended) == (413, True)


def test_a_body_in_parts_comes_through_whole() -> None:
    exchange = Exchange({"Content-Length": "9"}, [b"abc", b"def", b"ghi"])
    assert exchange.passed == b"abcdefghi"
    assert exchange.over == [9]


def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BODY_SECONDS", 0.05)
    monkeypatch.setattr(module, "LINGER", 0.05)
    exchange = Exchange({"Content-Length": "9"}, [b"abc", b""])
    assert (exchange.status, exchange.passed) == (408, None)
    assert exchange.headers[b"connection"] == b"close"


def test_a_client_that_leaves_gets_no_answer() -> None:
    exchange = Exchange({"Content-Length": "9"}, [b"abc", b"gone"])
    assert (exchange.status, exchange.passed, exchange.over) == (0, None, [])


@pytest.mark.parametrize(
    "host",
    ["localhost", "LocalHost:8000", "127.0.0.1", "127.0.0.1:80", "[::1]", "[::1]:80", "box.lan:1"],
)
def test_its_own_names_and_addresses_pass(host: str) -> None:
    exchange = Exchange({"Host": host}, hosts={"localhost", "box.lan"})
    assert exchange.passed == b"{}"


@pytest.mark.parametrize(
    "host", ["", "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil"]
)
def test_other_names_are_refused_unread_with_the_way_out(host: str) -> None:
    exchange = Exchange({"Host": host}, hosts={"localhost"})
    assert (exchange.status, exchange.read, exchange.passed) == (403, 0, None)
    assert "--allowed-host" in exchange.error["message"]
    assert Exchange({"Host": host}, hosts=None).passed == b"{}"
