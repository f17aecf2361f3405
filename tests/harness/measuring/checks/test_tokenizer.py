from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import transformers
from transformers import AutoTokenizer

from harness.judging.causes import explanation
from harness.measuring.cell import measure
from harness.measuring.checks import tokenizer as check
from rabbitllm.text import TextStream


@pytest.fixture
def measured(cell, tmp_path):
    """Measure a cell's tokenizer check alone."""

    def run(architecture: str = "qwen2"):
        found = cell(architecture, "sdpa", transformers.__version__)
        row = replace(found.architecture, checks=("tokenizer",), dealt=())
        return measure(replace(found, architecture=row, dealt=()), tmp_path)

    return run


@pytest.mark.parametrize("architecture", ["qwen2", "llama", "gemma3", "mistral", "phi3", "phi4"])
def test_a_sound_release_and_engine_pass(measured, architecture):
    found = measured(architecture)
    assert (found.status, found.message) == ("pass", "")
    assert found.checks["tokenizer"].figures["differing"] == []


def test_a_family_without_a_golden_tokenizer_is_not_run(measured):
    assert measured("internlm").checks["tokenizer"].status == "not-run"


def change_stock(monkeypatch, change):
    """Change the tokenizers that AutoTokenizer makes."""
    original = AutoTokenizer.from_pretrained

    def load(*given: Any, **named: Any) -> Any:
        made = original(*given, **named)
        change(made)
        return made

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", load)


def no_prefix(tokenizer: Any) -> None:
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer.backend_tokenizer.pre_tokenizer = Whitespace()


def other_template(tokenizer: Any) -> None:
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant", "model")


def other_decoder(tokenizer: Any) -> None:
    from tokenizers.decoders import Fuse

    tokenizer.backend_tokenizer.decoder = Fuse()


@pytest.mark.parametrize(
    ("change", "first"),
    [(no_prefix, "ids of"), (other_template, "chat of 2"), (other_decoder, "text of")],
)
def test_a_release_that_answers_otherwise_is_wrong(measured, monkeypatch, change, first):
    change_stock(monkeypatch, change)
    found = measured()
    assert found.status == "stock-wrong"
    result = found.checks["tokenizer"]
    assert "stock's are not those of tokenizer.json" in result.message
    assert result.figures["differing"][0].startswith(first)
    assert "AutoTokenizer" in explanation(found.exception, found.message)


def test_an_engine_with_another_tokenizer_fails(measured, monkeypatch):
    original = check.answers
    asked = []

    def other(tokenizer, texts):
        asked.append(tokenizer)
        found = original(tokenizer, texts)
        if len(asked) == 2:
            found["ids of 'Hello world'"] = (1,)
        return found

    monkeypatch.setattr(check, "answers", other)
    found = measured()
    assert found.status == "fail"
    assert "the engine's are not stock's: ids of 'Hello world'" in found.message


def test_an_engine_that_loses_spaces_in_passing_fails(measured, monkeypatch):
    original = TextStream._hand_on
    monkeypatch.setattr(TextStream, "_hand_on", lambda self, text: original(self, text.lstrip()))
    found = measured()
    assert found.status == "fail"
    assert "tokens that come one by one read otherwise: " in found.message


def test_stock_that_cannot_load_it_is_blamed_on_stock(measured, monkeypatch):
    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError("no tokenizer")

    monkeypatch.setattr(AutoTokenizer, "from_pretrained", refuse)
    found = measured()
    assert (found.status, found.exception) == ("reference-broken", "ValueError")
