"""Each invariance is broken in stock, then in the streamed model, and its check says whose."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.mistral import modeling_mistral

from harness.measuring import caches, checks
from harness.measuring.checkpoints import checkpoint
from harness.measuring.checks.chunked_prompt import original_context
from harness.measuring.checks.invariance import Pair
from harness.measuring.golden.values import read_values
from harness.measuring.subject import Subject


def given(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[nn.Module], None]:
    """Have a model called with other keywords."""

    def breaks(model: nn.Module) -> None:
        model.register_forward_pre_hook(
            lambda _, args, kwargs: (args, kwargs | change(kwargs)), with_kwargs=True
        )

    return breaks


def giving(change: Callable[[dict[str, Any], Any], None]) -> Callable[[nn.Module], None]:
    """Have a model change its output, by the keywords that it was called with."""

    def breaks(model: nn.Module) -> None:
        model.register_forward_hook(
            lambda _module, _args, kwargs, output: change(kwargs, output), with_kwargs=True
        )

    return breaks


def halved(kwargs: dict[str, Any]) -> dict[str, Any]:
    places = kwargs.get("position_ids")
    return {} if places is None else {"position_ids": places.half().long()}


def first_row_off(_: dict[str, Any], output: Any) -> None:
    if len(output.logits) > 1:
        output.logits[0] += 0.1


def off_behind_a_cache(kwargs: dict[str, Any], output: Any) -> None:
    if any(kwargs.get(name) is not None for name in caches.NAMES):
        output.logits += 0.1


def first_instead_of_last(kwargs: dict[str, Any], output: Any) -> None:
    if kwargs.get("logits_to_keep"):
        output.logits = output.logits.flip(1) if output.logits.shape[1] > 1 else output.logits * 2


def states_refused(_: dict[str, Any], output: Any) -> None:
    output.hidden_states = None


def states_not_normed(_: dict[str, Any], output: Any) -> None:
    if output.hidden_states:
        output.hidden_states = output.hidden_states[:-1] + output.hidden_states[-2:-1]


def off_unless_eager(model: nn.Module) -> None:
    def change(_: dict[str, Any], output: Any) -> None:
        if model.config._attn_implementation != "eager":
            output.logits += 0.1

    giving(change)(model)


BREAKS = (
    ("padded_row", given(lambda _: {"attention_mask": None}), "row of 9 tokens"),
    ("batch_order", giving(first_row_off), r"row \d as row \d"),
    ("chunked_prompt", giving(off_behind_a_cache), r"chunks of [\d, ]+ tokens"),
    ("last_position", giving(first_instead_of_last), "logits_to_keep="),
    ("far_positions", given(halved), "first position 4,001 instead of 128"),
    ("hidden_states", giving(states_refused), "number of hidden states"),
    ("hidden_states", giving(states_not_normed), "the last hidden state"),
    ("eager_parity", off_unless_eager, "the text|padded row"),
)


@pytest.fixture
def subject(cell, tmp_path):
    found = cell("mistral", release=transformers.__version__)
    return Subject(found, checkpoint(found, tmp_path))


@pytest.mark.parametrize("side", ["stock", "streamed"])
@pytest.mark.parametrize(("name", "breaks", "words"), BREAKS, ids=lambda value: str(value)[:20])
def test_what_breaks_an_invariance_is_seen_and_whose_it_is(subject, name, breaks, words, side):
    breaks(subject.reference if side == "stock" else subject.streamed)
    found = checks.load(name)[0](subject)
    of_stock = "stock-wrong" if name == "hidden_states" else "reference-broken"
    assert found.status == {"stock": of_stock, "streamed": "fail"}[side], found
    assert found.message.startswith("stock itself, ") is (side == "stock")
    assert re.search(words, found.message), found.message
    assert found.figures[f"{side}_relative"] > 1e-3


def test_the_eager_answer_leaves_stock_as_it_was(subject):
    checks.load("eager_parity")[0](subject)
    assert subject.reference.config._attn_implementation == "sdpa"


def test_how_far_two_answers_are_apart():
    ones = torch.ones(2, 3)
    assert Pair("a", ones * 1.5, ones).relative() == 0.5
    assert str(Pair("a", ones * 1.5, ones)) == "a: off by 0.5 of the largest value"
    assert Pair("a", ones * torch.nan, ones).relative() == float("inf")
    other = Pair("a", ones[:1], ones)
    one_off = ones.clone()
    one_off[0, 1] = 3
    pair = Pair("a", torch.cat([ones, one_off]), torch.ones(4, 3))
    assert (pair.relative(), pair.typical()) == (2, 0)
    assert Pair("a", torch.tensor(2.0), torch.tensor(1.0)).typical() == 1
    assert (other.relative(), str(other)) == (float("inf"), "a: shape [1, 3], not [2, 3]")


def test_no_chunk_crosses_longropes_original_context(cell, tmp_path):
    contexts = {}
    for name in ("llama", "phi3-longrope", "phi4-mini"):
        found = cell(name, release=transformers.__version__)
        made = Subject(found, checkpoint(found, tmp_path)).reference
        contexts[name] = original_context(made.config)
    assert contexts == {"llama": 0, "phi3-longrope": 8, "phi4-mini": 0}


def test_beams_that_are_not_reordered_are_seen(subject, monkeypatch):
    assert checks.load("beams")[0](subject).status == "pass"
    monkeypatch.setattr(transformers.DynamicCache, "reorder_cache", lambda *_: None)
    found = checks.load("beams")[0](subject)
    assert found.status == "reference-broken"
    assert "log probabilities of" in found.message


@pytest.mark.parametrize(
    ("name", "side", "status"),
    [
        ("generation_config", "reference", "stock-wrong"),
        ("generation_settings", "streamed", "fail"),
    ],
)
@pytest.mark.parametrize("field", ["eos_token_id", "repetition_penalty", "max_length"])
def test_a_generation_config_that_is_not_read_is_seen(subject, name, side, status, field):
    check = checks.load(name)[0]
    assert check(subject).status == "pass"
    published = subject.published(read_values("mistral").sha256)
    plain = {"eos_token_id": 2, "repetition_penalty": 1.0, "max_length": 26}
    setattr(getattr(published, side).generation_config, field, plain[field])
    found = check(subject)
    assert found.status == status, found
    assert "is the first other one" in found.message


def test_a_norm_in_half_precision_is_seen(subject, monkeypatch):
    check = checks.load("half_precision")[0]
    assert check(subject).status == "pass"

    def forward(norm: Any, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.variance_epsilon)
        return norm.weight * (x * scale)

    monkeypatch.setattr(modeling_mistral.MistralRMSNorm, "forward", forward)
    found = check(subject)
    assert found.status == "stock-wrong"
    assert "norm is off by 0.4" in found.message
