from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rabbitllm import CheckpointError
from rabbitllm.checkpoint.tokenizer import load_tokenizer


def test_the_tokenizer_is_that_of_the_folder(talker: Path) -> None:
    tokenizer = load_tokenizer(talker, False)
    assert tokenizer.decode(tokenizer("hello").input_ids) == "hello"


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer.json": "{"},
        {"tokenizer.json": "[1]"},
        {"tokenizer.json": "{}"},
        pytest.param({"tokenizer.json": "[" * 100_000}, id="deep"),
        {"tokenizer_config.json": "{"},
        {"tokenizer_config.json": "[1]"},
        {"tokenizer_config.json": '{"tokenizer_class": 3}'},
        {"tokenizer_config.json": '{"tokenizer_class": "os.system"}'},
        {
            "tokenizer_config.json": '{"tokenizer_class": "GPT2Tokenizer"}',
            "vocab.json": "[]",  # a bare Exception of the tokenizers library
            "merges.txt": "x",
        },
    ],
    ids=str,
)
def test_a_malformed_tokenizer_names_the_folder(
    copied: Callable[..., Path], files: dict[str, str]
) -> None:
    folder = copied()
    for name, text in files.items():
        (folder / name).write_text(text)
    message = f"^{folder} has no tokenizer that transformers can load: "
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(folder, False)


def test_a_tokenizers_code_does_not_run_unless_trusted(
    copied: Callable[..., Path], tmp_path: Path
) -> None:
    folder = copied()
    (folder / "own.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    config = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"custom code .*trust_remote_code=True"):
        load_tokenizer(folder, False)
    assert not (tmp_path / "trace").exists()


def test_an_error_that_is_not_the_checkpoints_stays_what_it_is(
    copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class UnforeseenError(Exception):
        pass

    def fail(*_: object, **__: object) -> None:
        raise UnforeseenError

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(UnforeseenError):
        load_tokenizer(copied(), False)


def test_a_template_that_only_a_processor_would_read_is_used(copied_talker: Path) -> None:
    (copied_talker / "chat_template.json").write_text('{"chat_template": "{{ messages }}"}')
    assert load_tokenizer(copied_talker, False).chat_template != "{{ messages }}"
    for file in copied_talker.glob("*.jinja"):
        file.unlink()
    assert load_tokenizer(copied_talker, False).chat_template == "{{ messages }}"


@pytest.mark.parametrize("text", ["{", "{}", '{"chat_template": 3}'])
def test_a_template_that_is_none_is_named(copied_talker: Path, text: str) -> None:
    for file in copied_talker.glob("*.jinja"):
        file.unlink()
    (copied_talker / "chat_template.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"chat_template\.json holds (no|a) chat template"):
        load_tokenizer(copied_talker, False)
