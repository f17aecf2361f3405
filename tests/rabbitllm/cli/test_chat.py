"""`chat`: what else can be typed, and how answers are drawn and end."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rabbitllm.cli import answer
from rabbitllm.cli.chat import COMMANDS, HINT
from rabbitllm.cli.conversation import read

Command = Callable[..., tuple[int, str, str]]
OPTIONS = ("--max-new-tokens", "6", "--device", "cpu")


@pytest.fixture
def chat(
    command: Command, talker: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[list[str], str]]:
    """`chat(line, line)` -> the lines of stdout, and stderr, of a chat from a pipe."""

    def run(*lines: str, options: tuple[str, ...] = OPTIONS) -> tuple[list[str], str]:
        monkeypatch.setattr("sys.stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        status, out, err = command("chat", talker, *options)
        assert status == 0
        return out.splitlines(), err

    return run


def test_help_names_every_command_and_the_keys(chat: Callable[..., Any]) -> None:
    out, err = chat("/help")
    assert not out
    assert all(f"\n{name} " in f"\n{err}" for name in COMMANDS)
    assert "Ctrl-C ends an answer" in err


def test_an_unknown_command_is_an_error_and_the_nearest_is_named(
    chat: Callable[..., Any],
) -> None:
    out, err = chat("/hlep", "/etc/passwd holds what?")
    assert not out
    assert "There is no /hlep. Did you mean '/help'?" in err
    assert "There is no /etc/passwd" in err
    assert "begin it with two slashes" in err


def test_a_line_may_begin_with_a_slash(chat: Callable[..., Any], tmp_path: Path) -> None:
    out, _ = chat("//etc holds what?", f"/save {tmp_path / 'talk'}")
    assert len(out) == 1
    assert read(tmp_path / "talk")[0] == {"role": "user", "content": "/etc holds what?"}


def test_retry_answers_the_same_message_again(chat: Callable[..., Any]) -> None:
    out, err = chat("/retry", "One", "Two", "/retry")
    assert "There is no message yet that could be answered again." in err
    assert len(out) == 3
    assert out[1] == out[2] != out[0]


def test_a_saved_conversation_goes_on_where_it_was(
    chat: Callable[..., Any], tmp_path: Path
) -> None:
    out, err = chat("One", f"/save {tmp_path / 'talk'}", "Two")
    assert f"Saved in {tmp_path / 'talk'}" in err
    again, err = chat(f"/load {tmp_path / 'talk'}", "Two")
    assert "user: One\nassistant: " in err
    assert again == out[1:]


def test_the_system_message_can_be_set_anew(chat: Callable[..., Any]) -> None:
    (plain, brief, again), err = chat(
        "One", "/clear", "/system Brief", "One", "/system", "/clear", "One"
    )
    assert "System message: Brief" in err
    assert "System message: none" in err
    assert plain == again != brief


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/load /no/such/file", "No such file or directory"),
        ("/load", "Name the file: /load FILE"),
        ("/save /", "Is a directory"),
    ],
)
def test_a_command_that_cannot_be_done_costs_nothing(
    chat: Callable[..., Any], line: str, said: str
) -> None:
    out, err = chat("One", line, "Two")
    assert said in err
    assert out == chat("One", "Two")[0]


def test_a_message_too_long_costs_nothing(chat: Callable[..., Any]) -> None:
    out, err = chat("One", "x" * 20_000, "Two")
    assert "the model's context is 20000. Shorten it." in err
    assert "the conversation is as before" in err
    assert out == chat("One", "Two")[0]


def test_exit_leaves(chat: Callable[..., Any]) -> None:
    assert chat("/exit", "One") == ([], chat()[1])


@pytest.mark.parametrize("options", [("--temperature", "0"), ("--top-p", "1e-9"), ()])
def test_greedy_is_a_matter_of_options(chat: Callable[..., Any], options: tuple[str, ...]) -> None:
    assert chat("One", options=(*OPTIONS, *options))[0] == chat("One")[0]


def test_a_seed_repeats_what_a_temperature_draws(chat: Callable[..., Any]) -> None:
    def drawn(seed: str) -> list[str]:
        return chat("One", options=(*OPTIONS, "--temperature", "2", "--seed", seed))[0]

    assert drawn("1") == drawn("1")
    assert len({tuple(drawn(seed)) for seed in "123"}) > 1


def test_an_answer_at_its_limit_says_so(chat: Callable[..., Any]) -> None:
    assert "The answer ended at its limit of 6 tokens: see --max-new-tokens." in chat("One")[1]


def test_an_answer_that_fills_the_context_says_so(
    command: Command, copied_talker: Path, configure: Callable[..., None]
) -> None:
    configure(copied_talker, max_position_embeddings=40)
    _, _, err = command("run", copied_talker, "Hi", "--device", "cpu")
    assert "The answer ended where the model's context of 40 tokens is full." in err


def test_a_second_ctrl_c_ends_the_answer_at_once_and_what_came_is_kept(
    chat: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    generate = answer.generate
    pieces: list[str] = []

    def interrupted(model: Any, prompt: Any, emit: Callable[[str], None], **options: Any) -> Any:
        def press(piece: str) -> None:
            emit(piece)
            pieces.append(piece)
            for _ in range(4 if len(pieces) == 3 else 0):
                signal.raise_signal(signal.SIGINT)

        return generate(model, prompt, press, **options)

    monkeypatch.setattr(answer, "generate", interrupted)
    _, err = chat("One", "Two", f"/save {tmp_path / 'talk'}")
    assert HINT in err
    texts = [message["content"] for message in read(tmp_path / "talk")]
    assert texts[:3] == ["One", "".join(pieces[:3]), "Two"]
