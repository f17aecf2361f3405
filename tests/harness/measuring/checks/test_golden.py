from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.models.llama import modeling_llama

from harness.judging.causes import explanation
from harness.measuring import subject as subjects
from harness.measuring.cell import measure
from harness.measuring.checks import golden
from harness.measuring.golden.values import REFERENCE, read_values
from harness.measuring.subject import StockError, Subject


@pytest.fixture
def measured(cell, tmp_path):
    """Measure a cell's golden check alone."""

    def run(architecture: str = "llama", backend: str = "sdpa", **changes: Any):
        found = cell(architecture, backend, transformers.__version__)
        row = replace(found.architecture, checks=("golden",), **changes)
        return measure(replace(found, architecture=row, dealt=()), tmp_path)

    return run


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "phi3-longrope", "gemma3-multimodal"])
def test_a_sound_release_and_engine_pass(measured, architecture):
    found = measured(architecture)
    assert (found.status, found.message) == ("pass", "")
    figures = found.checks["golden"].figures
    assert (figures["by"], figures["positions"], figures["first_other_token"]) == (
        REFERENCE, 0, None,
    )  # fmt: skip
    assert figures["streamed_bit_equal"] is True
    assert figures["relative"] < golden.ROUNDING / 4


def around_norm(patch: pytest.MonkeyPatch, factor: float) -> None:
    original = modeling_llama.LlamaRMSNorm.forward
    patch.setattr(
        modeling_llama.LlamaRMSNorm, "forward", lambda self, x: original(self, x) * factor
    )


def wrong_norm(patch: pytest.MonkeyPatch) -> None:
    around_norm(patch, 1.001)


def second_best(patch: pytest.MonkeyPatch) -> None:
    original = transformers.LlamaForCausalLM._sample
    argmax = torch.argmax

    def sample(*given: Any, **named: Any) -> Any:
        with pytest.MonkeyPatch.context() as inside:
            inside.setattr(
                torch, "argmax", lambda x, dim: x.topk(2).indices[..., 1] if dim else argmax(x, dim)
            )
            return original(*given, **named)

    patch.setattr(transformers.LlamaForCausalLM, "_sample", sample)


def padding_ignored(patch: pytest.MonkeyPatch) -> None:
    original = modeling_llama.create_causal_mask
    patch.setattr(
        modeling_llama,
        "create_causal_mask",
        lambda **named: original(**named | {"attention_mask": None}),
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (wrong_norm, "20 positions are off by up to 0.0"),
        (second_best, "stock's are not the reference's: generated token 1 is the first other one"),
        (padding_ignored, "is the first other one"),
    ],
)
def test_a_wrong_stock_that_the_engine_agrees_with_is_seen(measured, monkeypatch, wrong, words):
    wrong(monkeypatch)
    found = measured()
    assert found.status == "stock-wrong"
    assert words in found.message
    assert found.checks["golden"].figures["streamed_bit_equal"] is True
    assert "than the model's definition" in explanation(found.exception, found.message)


def test_held_to_a_release_stock_has_changed(measured, monkeypatch):
    values = replace(read_values("llama"), by="transformers 5.0.0")
    monkeypatch.setattr(golden, "read_values", lambda _: values)
    assert measured().status == "pass"
    wrong_norm(monkeypatch)
    found = measured()
    assert found.status == "stock-changed"
    assert "stock's are not those of transformers 5.0.0" in found.message


def test_a_streamed_model_that_differs_is_the_engines_fault(measured, monkeypatch):
    original = Subject.stream

    def stream(subject: Subject) -> Any:
        model = original(subject)
        model.lm_head.register_forward_hook(lambda _module, _args, output: output + 1e-3)
        return model

    monkeypatch.setattr(Subject, "stream", stream)
    found = measured()
    assert found.status == "fail"
    assert "the streamed model's are not stock's: largest difference 0.001" in found.message


def test_nan_is_beyond_rounding(cell, tmp_path):
    subject, logits = Subject(cell(), tmp_path), torch.ones(3, 4)
    broken = logits.clone()
    broken[1, 2] = torch.nan
    assert golden.distance(broken, logits, subject).positions == 1
    assert golden.distance(logits, logits, subject).positions == 0


def test_stock_that_answers_otherwise_when_asked_again_is_to_blame(measured, monkeypatch):
    always = property(lambda _: True, lambda _, __: None)
    monkeypatch.setattr(modeling_llama.LlamaAttention, "training", always, raising=False)
    found = measured()
    assert found.status == "reference-broken"
    assert "stock answers otherwise when asked again" in found.message


def test_stock_that_reads_other_keys_is_to_blame(cell, tmp_path, monkeypatch):
    original = transformers.LlamaForCausalLM.__init__

    def renamed(self: Any, config: Any) -> None:
        original(self, config)
        self.model.last_norm = self.model.norm
        del self.model.norm

    monkeypatch.setattr(transformers.LlamaForCausalLM, "__init__", renamed)
    published = Subject(cell(), tmp_path / "own").published(read_values("llama").sha256)
    with pytest.raises(StockError) as raised:
        published.reference  # noqa: B018  # which loads it
    assert "missing keys: model.last_norm.weight (1 in all)" in str(raised.value.__cause__)


def test_what_has_no_golden_values_is_not_run(measured):
    without = measured("internlm")
    assert without.status == "not-run"
    assert "internlm has no golden checkpoint" in without.message


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_held_to_what_it_rounds(measured, monkeypatch, dtype):
    assert measured(dtype=dtype).status == "pass"
    around_norm(monkeypatch, 1.2)
    found = measured(dtype=dtype)
    assert found.status == "stock-wrong"
    assert "20 positions are off by up to" in found.message


def test_values_of_other_bits_are_not_compared(measured, monkeypatch):
    values = replace(read_values("llama"), sha256="0" * 64)
    monkeypatch.setattr(golden, "read_values", lambda _: values)
    found = measured()
    assert found.status == "fail"
    assert found.exception == "ValueError"
    assert "the golden checkpoint of llama is" in found.message


def test_stock_that_cannot_read_the_published_config_is_to_blame(measured, monkeypatch):
    def refuse(self: Any, config: Any) -> None:
        raise AttributeError("no such field")

    original = subjects.golden_checkpoint

    def then_refuse(*given: Any) -> Path:
        monkeypatch.setattr(transformers.LlamaForCausalLM, "__init__", refuse)
        return original(*given)

    monkeypatch.setattr(subjects, "golden_checkpoint", then_refuse)
    found = measured()
    assert (found.status, found.exception) == ("reference-broken", "AttributeError")
