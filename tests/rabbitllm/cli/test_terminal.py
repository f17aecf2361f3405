"""`chat` on a real terminal: its keys."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rabbitllm.cli.chat import HINT
from rabbitllm.cli.conversation import read
from tests.patience import PATIENCE

pty = pytest.importorskip("pty", reason="there are no pseudo-terminals here")
fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")


def take_control() -> None:
    """Makes the terminal on stdin the one whose Ctrl-C this process gets."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self.master, slave = pty.openpty()
        self.ready = select.poll()
        self.ready.register(self.master, select.POLLIN)
        self.seen = b""
        self.process = subprocess.Popen(
            arguments,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=take_control,
            env=os.environ
            | {"XDG_STATE_HOME": str(folder), "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"},
        )
        os.close(slave)

    def send(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def expect(self, pattern: str) -> str:
        """Waits for what matches, and forgets what came up to its end."""
        deadline = time.monotonic() + PATIENCE
        while not (match := re.search(pattern.encode(), self.seen, re.DOTALL)):
            left = deadline - time.monotonic()
            assert left > 0, f"{pattern!r} did not come: {self.seen!r}"
            if self.ready.poll(1000 * left):
                self.seen += os.read(self.master, 1 << 16)
        self.seen = self.seen[match.end() :]
        return match[0].decode()


PROMPT, SENT = r"\x1b\[\?2004h", r"\x1b\[\?2004l"
"""How the editor begins to listen to keys, and ends."""


@pytest.fixture
def terminal(talker: Path, tmp_path: Path) -> Iterator[Terminal]:
    """A chat on a terminal, which waits for its first line."""
    words = ["chat", str(talker), "--max-new-tokens", "9999", "--device", "cpu"]
    terminal = Terminal([sys.executable, "-m", "rabbitllm", *words], tmp_path)
    terminal.expect(re.escape(HINT))
    terminal.expect(PROMPT)
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    os.close(terminal.master)


def test_ctrl_c_never_costs_the_conversation(terminal: Terminal, tmp_path: Path) -> None:
    terminal.send("\x03")
    terminal.expect(re.escape(HINT))
    terminal.expect(PROMPT)
    terminal.send('"""Hi\r')
    terminal.send('you"""\r')
    terminal.expect(f"{SENT}.*[a-z]{{9}}")
    terminal.send("\x03")
    terminal.expect("Ctrl-C again stops at once")
    terminal.send("\x03\x03")  # the answer may have ended by now: then nobody hears them
    terminal.expect(PROMPT)
    terminal.send(f"/save {tmp_path / 'talk'}\r")
    terminal.expect("Saved in")
    terminal.expect(PROMPT)
    first, second = read(tmp_path / "talk")
    assert first == {"role": "user", "content": "Hi\nyou"}
    assert len(second["content"]) >= 9
    terminal.send("\x04")
    assert terminal.process.wait(PATIENCE) == 0


def test_leaving_says_what_would_have_kept_the_conversation(
    terminal: Terminal, tmp_path: Path
) -> None:
    terminal.send("Hi\r")
    terminal.expect(f"{SENT}.*[a-z]{{9}}")
    terminal.send("\x03")
    terminal.expect(PROMPT)
    terminal.send("\x04")
    terminal.expect(f"was not saved; /save would have put it in {tmp_path}/rabbitllm/chat-")
    assert terminal.process.wait(PATIENCE) == 0
    assert "+Hi" in (tmp_path / "rabbitllm" / "history").read_text()


def test_what_is_typed_during_an_answer_comes_at_the_next_prompt(
    talker: Path, tmp_path: Path
) -> None:
    words = ["chat", str(talker), "--max-new-tokens", "60", "--device", "cpu"]
    terminal = Terminal([sys.executable, "-m", "rabbitllm", *words], tmp_path)
    terminal.expect(PROMPT)
    terminal.send("Hi\r")
    terminal.expect(f"{SENT}.*[a-z]{{3}}")
    terminal.send("/help\r")
    assert "/help" not in terminal.expect(f".*{PROMPT}")
    terminal.expect("/help.*/retry")
    terminal.expect(PROMPT)
    terminal.send("\x04")
    assert terminal.process.wait(PATIENCE) == 0
    assert termios.tcgetattr(terminal.master)[3] & termios.ECHO
    os.close(terminal.master)
