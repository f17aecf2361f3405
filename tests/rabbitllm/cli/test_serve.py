"""Where `serve` listens; what it answers is tested in tests/rabbitllm/serving."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rabbitllm.cli.serve import _bracketed, _listen

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that somebody else listens on."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_taken_port_is_said_before_the_model_loads(
    command: Command, taken: int, tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn")
    status, _, err = command("serve", tmp_path, "--port", str(taken))
    assert status == 1
    assert err == (
        f"rabbitllm: Cannot listen on 127.0.0.1:{taken}: Address already in use. Choose another "
        "address with --host and --port; port 0 takes a free one.\n"
    )


def test_a_queue_without_room_for_a_request_is_refused(command: Command, tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    status, _, err = command("serve", tmp_path, "--queue", "256")
    assert status == 2
    assert "--queue: 256 holds no request: give one such as 256MiB." in err


def test_a_host_that_is_none_is_named() -> None:
    with pytest.raises(OSError, match=r"Cannot listen on no such host:0: "):
        _listen("no such host", 0)


@pytest.mark.parametrize(("host", "in_url"), [("127.0.0.1", "127.0.0.1"), ("::1", "[::1]")])
def test_both_protocols(host: str, in_url: str) -> None:
    try:
        with _listen(host, 0) as listener:
            socket.create_connection(listener.getsockname()[:2]).close()
    except OSError as error:
        if host == "127.0.0.1":
            raise
        pytest.skip(f"no IPv6 here: {error}")
    assert _bracketed(host) == in_url
