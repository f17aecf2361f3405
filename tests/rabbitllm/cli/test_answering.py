"""`run` and `chat`."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedModel

from rabbitllm.cli import answer

Command = Callable[..., tuple[int, str, str]]
LEAST = ("--host-memory", "min", "--device", "cpu")


@pytest.fixture(scope="module")
def expected(talker: Path, stock: Callable[..., PreTrainedModel]) -> Callable[[str, int], str]:
    """`expected(prompt, tokens)` -> stock's greedy continuation."""
    model, tokenizer = stock(talker), AutoTokenizer.from_pretrained(talker)

    def text(prompt: str, tokens: int) -> str:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        return tokenizer.decode(output[0, inputs.input_ids.shape[1] :])

    return text


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`typed(text)`: what comes in on stdin."""
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


@pytest.fixture
def ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presses Ctrl-C when the third piece of an answer has been printed."""
    generate = answer.generate

    def interrupted(model: Any, prompt: Any, emit: Callable[[str], None], **options: Any) -> Any:
        pieces = []

        def press(piece: str) -> None:
            emit(piece)
            pieces.append(piece)
            if len(pieces) == 3:
                signal.raise_signal(signal.SIGINT)

        return generate(model, prompt, press, **options)

    monkeypatch.setattr(answer, "generate", interrupted)


def test_run_prints_the_answer_alone_on_stdout(
    command: Command, talker: Path, expected: Callable[[str, int], str]
) -> None:
    status, out, err = command("run", talker, "Hi", "--max-new-tokens", "9", *LEAST)
    assert status == 0
    assert out == expected("<user>Hi\n<assistant>", 9) + "\n"
    assert "0 of 6 parts resident on cpu, streaming 5 from disk" in err
    assert "20 tokens read in" in err
    assert "9 written at" in err
    assert "GB from disk" in err


def test_run_takes_an_adapter_and_plan_names_its_model(
    command: Command, talker: Path, stock: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(stock(talker), config)
    adapted.save_pretrained(tmp_path)
    inputs = AutoTokenizer.from_pretrained(talker)("<user>Hi\n<assistant>", return_tensors="pt")
    due = adapted.generate(**inputs, max_new_tokens=9, do_sample=False)[0, -9:]
    status, out, err = command("run", tmp_path, "Hi", "--max-new-tokens", "9", *LEAST)
    assert (status, out) == (0, AutoTokenizer.from_pretrained(talker).decode(due) + "\n"), err
    status, _, err = command("plan", tmp_path)
    assert status == 2
    assert f"{tmp_path} is an adapter (LoRA) for {talker}, not a model." in err


def test_run_with_a_system_message(
    command: Command, talker: Path, expected: Callable[[str, int], str]
) -> None:
    _, out, _ = command("run", talker, "Hi", "--system", "Brief", "--max-new-tokens", "9", *LEAST)
    assert out == expected("<system>Brief\n<user>Hi\n<assistant>", 9) + "\n"


def test_run_takes_a_prompt_that_is_no_text_in_the_locale(
    command: Command, talker: Path, expected: Callable[[str, int], str]
) -> None:
    accented = "\N{LATIN SMALL LETTER E WITH ACUTE}"
    escaped = accented.encode().decode("ascii", "surrogateescape")  # as in an ASCII locale
    _, out, _ = command("run", talker, escaped, "--max-new-tokens", "9", *LEAST)
    assert out == expected(f"<user>{accented}\n<assistant>", 9) + "\n"


def test_run_without_a_chat_template_continues_the_text(
    command: Command, copied_talker: Path, expected: Callable[[str, int], str]
) -> None:
    (copied_talker / "chat_template.jinja").unlink()
    _, out, _ = command("run", copied_talker, "Hi", "--max-new-tokens", "9", *LEAST)
    assert out == expected("Hi", 9) + "\n"


def test_run_stops_at_ctrl_c_with_what_there_is(
    command: Command, talker: Path, expected: Callable[[str, int], str], ctrl_c: None
) -> None:
    status, out, err = command("run", talker, "Hi", "--max-new-tokens", "99", *LEAST)
    assert status == 130
    assert out == expected("<user>Hi\n<assistant>", 3) + "\n"
    assert "3 written" in err


def test_chat_remembers_until_it_is_told_to_forget(
    command: Command,
    talker: Path,
    expected: Callable[[str, int], str],
    typed: Callable[[str], None],
) -> None:
    typed("One\n\nTwo\n/clear\nOne\n")
    status, out, err = command(
        "chat", talker, "--system", "S", "--max-new-tokens", "6", "--device", "cpu"
    )
    first = expected("<system>S\n<user>One\n<assistant>", 6)
    history = f"<system>S\n<user>One\n<assistant>{first}\n<user>Two\n<assistant>"
    assert status == 0
    assert expected(history, 6) != expected(history.replace(first, ""), 6)
    assert out.splitlines() == [first, expected(history, 6), first]
    assert err.count("6 written") == 3


def test_chat_goes_on_after_ctrl_c(
    command: Command, talker: Path, typed: Callable[[str], None], ctrl_c: None
) -> None:
    typed("One\nTwo\n")
    status, out, _ = command("chat", talker, "--max-new-tokens", "99", "--device", "cpu")
    assert status == 0
    assert [len(line) for line in out.splitlines()] == [3, 3]


def test_chat_takes_bytes_that_are_no_text(
    command: Command,
    talker: Path,
    expected: Callable[[str, int], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), "utf-8"))
    status, out, _ = command("chat", talker, "--max-new-tokens", "6", "--device", "cpu")
    assert status == 0
    assert out == expected("<user>caf\N{REPLACEMENT CHARACTER}\n<assistant>", 6) + "\n"


def test_chat_needs_a_chat_template(command: Command, copied_talker: Path) -> None:
    (copied_talker / "chat_template.jinja").unlink()
    status, _, err = command("chat", copied_talker, "--device", "cpu")
    assert status == 2
    assert "no chat template" in err


def test_a_bar_shows_the_prompts_layers_on_a_terminal_until_there_is_text(
    command: Command,
    talker: Path,
    expected: Callable[[str, int], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    written = Terminal()
    monkeypatch.setattr("sys.stderr", written)
    monkeypatch.setattr("sys.stdout", written)
    monkeypatch.setattr("tqdm.std.tqdm.monitor_interval", 0)
    command("run", talker, "Hi", "--max-new-tokens", "9", *LEAST)
    bar, answer = written.getvalue().split(expected("<user>Hi\n<assistant>", 9))
    assert "Reading the prompt" in bar
    assert "\r" not in answer


def test_no_bar_without_a_terminal(command: Command, talker: Path) -> None:
    _, _, err = command("run", talker, "Hi", "--max-new-tokens", "2", *LEAST)
    assert "\r" not in err
