from __future__ import annotations

import argparse
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rabbitllm import __version__, cli
from rabbitllm.cli import main

Command = Callable[..., tuple[int, str, str]]
NAMES = [
    "run",
    "chat",
    "plan",
    "split",
    "cache",
    "doctor",
    "bench",
    "serve",
    "batch",
    "check",
    "bisect",
]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """`failing(error)`: `rabbitllm doctor` raises it."""

    def fail(error: BaseException) -> None:
        def action(_: argparse.Namespace) -> int:
            raise error

        monkeypatch.setattr("rabbitllm.cli.doctor.main", action)

    return fail


def test_help_names_every_command_and_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "rabbitllm run Qwen" in text
    for name in NAMES:
        assert f"\n    {name} " in text


@pytest.mark.parametrize("name", NAMES)
def test_help_of_every_command_shows_an_example_of_it(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert f"example:\n  rabbitllm {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--help"],
        ["--version"],
        ["run", "--help"],
        ["nothing"],
        ["run", "model", "Hi", "--host-memory", "lots"],
        ["bench", "model", "--device-memory", "4GG"],
        ["chat", "{folder}/model.gguf"],
        ["split", "{folder}/model.gguf"],
        ["cache", "ls", "--store", "{folder}"],
        ["cache", "rm", "--all", "--store", "{folder}"],
    ],
)
def test_what_needs_no_model_waits_for_no_library_of_models(
    arguments: list[str], tmp_path: Path
) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    (tmp_path / "a-store").mkdir()
    (tmp_path / "a-store" / "store.json").write_text("{}")
    words = [word.format(folder=tmp_path) for word in arguments]
    code = (
        "import sys\nfrom rabbitllm.cli import main\n"
        f"try: main({words})\n"
        "except SystemExit: pass\n"
        "slow = ('torch', 'transformers', 'huggingface_hub', 'numpy', 'accelerate')\n"
        "print('slow:', [name for name in slow if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("slow: []\n")


def test_alone_it_shows_its_help(command: Command) -> None:
    status, out, err = command()
    assert (status, err) == (0, "")
    assert out.startswith("usage: rabbitllm")
    assert "rabbitllm run Qwen" in out


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        (["chta", "model"], "chat"),
        (["dcotor"], "doctor"),
        (["cache", "chekc"], "check"),
        (["run", "model", "Hi", "--devcie", "cpu"], "--device"),
        (["run", "model", "Hi", "--max-new-token=5", "--hostmemory=4G"], "--host-memory"),
        (["split", "model", "--compression", "losless"], "lossless"),
    ],
)
def test_a_mistyped_word_brings_the_nearest(
    arguments: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(f" Did you mean {meant!r}?\n")


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rabbitllm", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"rabbitllm {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["run", "model"],
        ["cache"],
        ["run", "model", "Hi", "--max-new-tokens", "0"],
        ["run", "model", "Hi", "--max-seq-len", "many"],
        ["serve", "model", "--port", "65536"],
    ],
)
def test_misuse_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: rabbitllm" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "/no/such/folder", "Hi"], "No such folder: /no/such/folder"),
        (["plan", "{folder}", "--host-memory", "1KiB", "--device", "cpu"], "needs at least"),
        (["plan", "{folder}", "--host-memory", "lots"], "--host-memory: 'lots' is no size"),
        (["run", "{folder}", "Hi", "--device-memory", "150%"], "'150%' is no size. Write bytes"),
        (["serve", "{folder}", "--queue", "-1"], "--queue: '-1' is no size"),
        (["run", "{folder}/model.safetensors", "Hi"], "is one file of weights. Give the folder"),
        (["plan", "{folder}", "--attn-implementation", "sdap"], "Did you mean 'sdpa'?"),
        (["plan", "{folder}", "--device", "tpu"], "device='tpu' is not understood"),
        (["split", "{folder}", "--dtype", "int8"], "dtype='int8' is no floating point dtype"),
    ],
)
def test_what_cannot_be_is_one_line_and_status_2(
    command: Command, talker: Path, arguments: list[str], message: str
) -> None:
    status, out, err = command(*(word.format(folder=talker) for word in arguments))
    assert status == 2
    assert not out
    assert err.startswith("rabbitllm: ")
    assert message in err
    assert err.count("\n") == 1


def test_tracebacks_are_for_those_who_ask(command: Command, capsys: object) -> None:
    assert "Traceback" not in command("run", "/no/such/folder", "Hi")[2]
    logging.getLogger().handlers.clear()
    assert "Traceback" in command("run", "/no/such/folder", "Hi", "-vv")[2]


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (
            OSError(2, "No such file or directory", "a.json"),
            1,
            "a.json: No such file or directory.",
        ),
        (ImportError("needs a package"), 1, "needs a package"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), 1, "Lower --device-memory"),
        (MemoryError(), 1, "Out of memory. Lower --host-memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 1, "Lower --host-memory"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_goes_wrong_has_its_own_status(
    command: Command,
    failing: Callable[[BaseException], None],
    error: BaseException,
    status: int,
    message: str,
) -> None:
    failing(error)
    found, _, err = command("doctor")
    assert found == status
    assert message in err
    assert err.count("\n") == bool(message)


def test_a_bug_is_not_hidden(command: Command, failing: Callable[[BaseException], None]) -> None:
    failing(RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        command("doctor")


def test_a_reader_that_leaves_is_no_error_message(tmp_path: Path) -> None:
    nobody, pipe = os.pipe()
    os.close(nobody)
    arguments = [sys.executable, "-m", "rabbitllm", "cache", "ls", "--store", str(tmp_path)]
    done = subprocess.run(arguments, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_traceback(closed: str, tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "rabbitllm", "cache", "ls", "--store", str(tmp_path)]
    command = f"{shlex.join(arguments)} {closed}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert not done.stderr
    assert not done.stdout


def test_what_a_terminal_cannot_show_is_a_question_mark(tmp_path: Path) -> None:
    store = tmp_path / "caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    done = subprocess.run(
        [sys.executable, "-m", "rabbitllm", "cache", "ls", "--store", store],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert done.stdout == f"No layer stores in {tmp_path}/caf?.\n"


def test_the_commands_are_modules_named_after_them() -> None:
    assert [module.__name__.rpartition(".")[2] for module in cli.COMMANDS] == NAMES


def test_a_wait_for_a_compiler_is_said(caplog: pytest.LogCaptureFixture) -> None:
    kept_code = pytest.importorskip("rabbitllm.checkpoint.codecs.kept_code")
    cli._prepare_logging(logging.WARNING)
    kept_code._say_that_it_takes_time.__wrapped__()
    assert caplog.messages == ["Compiling loops: some seconds, once"]
