"""What a user types: with an editor, history and several lines on a terminal, from a pipe as it is.

prompt_toolkit edits, for it does so on Windows, too, where Python has no readline, and takes a
message of several lines as one.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rabbitllm.cli.conversation import state_folder
from rabbitllm.cli.options import prose

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

QUOTES = '"""'

Read = Callable[[], str]
"""Reads a message, without the white space around it; EOFError at the end of the input."""


def reader(words: Iterable[str]) -> Read:
    """Reads messages from the terminal, or from a pipe.

    On a terminal it raises KeyboardInterrupt at Ctrl-C.

    Args:
        words: what the tabulator key completes.
    """
    return _terminal(words) if sys.stdin.isatty() else _pipe


def unfinished(text: str) -> bool:
    """Whether another line belongs to a message: it ends in a backslash, or quotes are open."""
    if text.lstrip().startswith(QUOTES):
        return not text.rstrip().endswith(QUOTES) or len(text.strip()) < 2 * len(QUOTES)
    return text.endswith("\\")


def message(text: str) -> str:
    """A message without what says that it has several lines."""
    text = text.strip()
    if text.startswith(QUOTES):
        return prose(text.removeprefix(QUOTES).removesuffix(QUOTES).strip())
    return prose(text.replace("\\\n", "\n"))


@contextmanager
def unseen() -> Iterator[None]:
    """Within, what is typed on a terminal is not shown: the next prompt shows it, to be edited."""
    try:
        import termios  # which Windows lacks; it shows nothing that no program asks for
    except ImportError:
        yield
        return
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    silent = termios.tcgetattr(terminal)
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(terminal, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)


def _pipe() -> str:
    text = ""
    while line := sys.stdin.readline():
        text += line
        if not unfinished(text.rstrip("\n")):
            return message(text)
    if not text:
        raise EOFError
    return message(text)


def _terminal(words: Iterable[str]) -> Read:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output
    from prompt_toolkit.shortcuts import CompleteStyle

    session: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        history=_history(),
        completer=WordCompleter(list(words), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        enable_suspend=True,
        key_bindings=_keys(),
        output=create_output(always_prefer_tty=True),
    )
    return lambda: message(session.prompt())


def _history() -> "History":
    """What was typed in other sessions; of this one alone where nothing can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    file = state_folder() / "history"
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.touch(mode=0o600)
    except OSError:
        return InMemoryHistory()
    return FileHistory(str(file))


def _keys() -> "KeyBindings":
    """Enter sends what is finished; Alt-Enter always begins another line."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def send(event: "KeyPressEvent") -> None:
        buffer = event.current_buffer
        if unfinished(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def begin_line(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    return keys
