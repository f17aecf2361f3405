"""A conversation: what was said, and its file."""

import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rabbitllm.checkpoint.durable import write_durably
from rabbitllm.checkpoint.plain_json import MALFORMED, read_json

ROLES = ("system", "user", "assistant")

Message = dict[str, str]


@dataclass
class Conversation:
    """What was said, by whom.

    Attributes:
        messages: each with "role" and "content", a system message first if there is one.
        saved: nothing has been said since it was written to a file, or read from one.
    """

    messages: list[Message] = field(default_factory=list)
    saved: bool = True

    def say(self, role: str, text: str) -> None:
        """Adds a message."""
        self.messages.append({"role": role, "content": text})
        self.saved = False

    def set_system(self, text: str | None) -> None:
        """Sets the system message, or takes it away."""
        self.messages[:] = [each for each in self.messages if each["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def clear(self) -> None:
        """Forgets all but the system message."""
        self.messages[:] = [each for each in self.messages if each["role"] == "system"]
        self.saved = True

    def ends_with(self, role: str) -> bool:
        """Whether the last message is of this role."""
        return bool(self.messages) and self.messages[-1]["role"] == role

    def save(self, file: Path) -> None:
        """Writes it to a file; replaces one only if that is a conversation.

        Raises:
            ValueError: it is something else.
            OSError: it cannot be written.
        """
        if file.exists():
            try:
                read(file)
            except ValueError as error:
                raise ValueError(f"{error} It stays as it is: choose another name.") from error
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        text = json.dumps({"messages": self.messages}, indent=2, ensure_ascii=False)
        write_durably(file, f"{text}\n")
        self.saved = True

    def load(self, file: Path) -> None:
        """Goes on with the one in a file.

        Raises:
            ValueError: the file holds no conversation.
            OSError: it cannot be read.
        """
        self.messages[:] = read(file)
        self.saved = True


def read(file: Path) -> list[Message]:
    """The messages in a file, as `save` or a program that speaks OpenAI's interface writes them.

    Raises:
        ValueError: there are none.
        OSError: it cannot be read.
    """
    try:
        found: Any = read_json(file)
        messages = found["messages"] if isinstance(found, dict) else list(found)
        return [{"role": ROLES[ROLES.index(m["role"])], "content": _text(m)} for m in messages]
    except MALFORMED as error:
        raise ValueError(f"{file} holds no conversation.") from error


def default_file() -> Path:
    """Where a conversation goes that nobody named a file for."""
    return state_folder() / time.strftime("chat-%Y-%m-%d-%H%M%S.json")


def state_folder() -> Path:
    """Where what was typed and said is kept, whether it is there yet or not."""
    base = os.environ.get("XDG_STATE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.local/state"
    return Path(base).expanduser() / "rabbitllm"


def _text(message: Any) -> str:
    if not isinstance(message["content"], str):
        raise TypeError("only text can be read")
    return message["content"]
