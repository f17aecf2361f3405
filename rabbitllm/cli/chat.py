"""Talk with a model in the terminal.

/help lists what else can be typed. Ctrl-C ends an answer, Ctrl-D leaves.
"""

import argparse
import io
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rabbitllm.cli.conversation import Conversation, Message, default_file
from rabbitllm.cli.editor import Read, reader, unseen
from rabbitllm.cli.failures import EXPECTED, explain
from rabbitllm.cli.options import add_answer_arguments, add_model_arguments, load
from rabbitllm.errors import nearest

if TYPE_CHECKING:
    from rabbitllm import StreamedModel

EXAMPLE = '  rabbitllm chat Qwen/Qwen2.5-7B-Instruct --system "Answer briefly."'
HINT = "Ctrl-D or /exit leaves; /help says what else there is."
KEYS = """\
Enter sends; Alt-Enter, a backslash at the end of a line, or \"\"\" around them make several lines.
Arrows edit and bring back what was typed. A line that begins with // is sent with one slash.
Ctrl-C ends an answer after the token under way, a second one at once; what was said is kept."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's arguments."""
    add_model_arguments(parser)
    add_answer_arguments(parser)


def main(arguments: argparse.Namespace) -> int:
    """Runs the sub-command; returns its exit status."""
    from rabbitllm.cli.answer import options_of, placement

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # which `prose` makes good
    model = load(arguments)
    if not model.tokenizer.chat_template:
        raise ValueError(
            f"{arguments.model} has no chat template: it is no chat model. `rabbitllm run` "
            "continues a text."
        )
    print(f"Loaded: {placement(model)}", file=sys.stderr)
    talk = Conversation()
    talk.set_system(arguments.system)
    session = Session(model, options_of(arguments), talk)
    if sys.stdin.isatty():
        print(HINT, file=sys.stderr)
        with _deaf():
            session.run()
    else:
        session.run()
    return 0


@dataclass
class Session:
    """A model and who talks with it.

    Attributes:
        model: that answers.
        options: of `answer_aloud`.
        talk: what has been said.
        left: the user wants to go.
    """

    model: "StreamedModel"
    options: dict[str, Any]
    talk: Conversation
    left: bool = False

    def run(self) -> None:
        """Reads and answers until the user leaves. No error, and no Ctrl-C, costs what was said."""
        read = reader(COMMANDS)
        while not self.left:
            self._turn(read)
        if not self.talk.saved and sys.stdin.isatty():
            print(
                f"The conversation was not saved; /save would have put it in {default_file()}.",
                file=sys.stderr,
            )

    def _turn(self, read: Read) -> None:
        try:
            self._take(read())
        except EOFError:
            self.left = True
        except KeyboardInterrupt:
            print(HINT, file=sys.stderr)
        except EXPECTED as error:
            explained = explain(error)
            if explained is None:
                raise
            print(f"rabbitllm: {explained[0]}", file=sys.stderr)

    def _take(self, text: str) -> None:
        """Does what a line asks for.

        Raises:
            ValueError: it names no command, or one that cannot be done.
        """
        if text.startswith("/") and not text.startswith("//"):
            name, _, argument = text.partition(" ")
            if name not in COMMANDS:
                raise ValueError(
                    f"There is no {name}.{nearest(name, COMMANDS)} /help lists what there is; "
                    f"to send the line as a message, begin it with two slashes."
                )
            COMMANDS[name].run(self, argument.strip())
        elif text:
            before = list(self.talk.messages)
            self.talk.say("user", text.removeprefix("/") if text.startswith("//") else text)
            self.answer(before)

    def answer(self, before: list[Message]) -> None:
        """Answers the last message.

        Args:
            before: the messages to go back to if nothing comes.
        """
        from rabbitllm.cli.answer import answer_aloud

        pieces: list[str] = []
        try:
            with unseen():
                answer_aloud(self.model, list(self.talk.messages), pieces, **self.options)
        finally:
            if pieces:
                self.talk.say("assistant", "".join(pieces))
            else:
                self.talk.messages[:] = before
                print("Nothing was answered: the conversation is as before.", file=sys.stderr)


@contextmanager
def _deaf() -> Iterator[None]:
    """Within, Ctrl-C does nothing where nobody waits for it: between an answer and the prompt."""
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _help(session: Session, _: str) -> None:
    width = max(len(f"{name} {command.argument}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        print(f"{f'{name} {command.argument}'.ljust(width)}  {command.text}", file=sys.stderr)
    print(KEYS, file=sys.stderr)


def _clear(session: Session, _: str) -> None:
    session.talk.clear()
    print("A new conversation.", file=sys.stderr)


def _system(session: Session, text: str) -> None:
    session.talk.set_system(text)
    print(f"System message: {text or 'none'}", file=sys.stderr)


def _retry(session: Session, _: str) -> None:
    before = list(session.talk.messages)
    if session.talk.ends_with("assistant"):
        session.talk.messages.pop()
    if not session.talk.ends_with("user"):
        session.talk.messages[:] = before
        raise ValueError("There is no message yet that could be answered again.")
    session.answer(before)


def _save(session: Session, name: str) -> None:
    file = Path(name).expanduser() if name else default_file()
    session.talk.save(file)
    print(f"Saved in {file}; /load {file} goes on with it.", file=sys.stderr)


def _load(session: Session, name: str) -> None:
    if not name:
        raise ValueError("Name the file: /load FILE.")
    session.talk.load(Path(name).expanduser())
    for message in session.talk.messages:
        print(f"{message['role']}: {message['content']}", file=sys.stderr)


def _exit(session: Session, _: str) -> None:
    session.left = True


class Command(NamedTuple):
    """What a user can ask of the chat itself.

    Attributes:
        argument: what follows the name, as help has it.
        text: what it does, for help.
        run: does it.
    """

    argument: str
    text: str
    run: Callable[[Session, str], None]


COMMANDS = {
    "/help": Command("", "shows this", _help),
    "/clear": Command("", "begins a new conversation, with the same system message", _clear),
    "/system": Command("TEXT", "sets the system message; alone, takes it away", _system),
    "/retry": Command("", "answers the last message again", _retry),
    "/save": Command("FILE", "writes the conversation to a file; alone, to a new one", _save),
    "/load": Command("FILE", "goes on with the conversation in a file", _load),
    "/exit": Command("", "leaves, as Ctrl-D does", _exit),
}
"""Name -> what it does."""
