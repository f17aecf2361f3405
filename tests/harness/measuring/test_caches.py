from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.measuring import caches
from harness.measuring.checks.arguments import held_by
from harness.measuring.checks.chunked_prompt import chunked
from harness.measuring.contract import watch
from harness.measuring.subject import PROMPT, Subject
from harness.stock import answers
from rabbitllm.releases import probe

IDS = torch.arange(3, 17)[None]


class Newer(LlamaForCausalLM):
    """As if the installed release knew no other name."""

    name = "cache"

    def forward(self, input_ids: Any, cache: Any = None, **kwargs: Any) -> Any:
        return answered(self, input_ids, cache, kwargs)


class Older(LlamaForCausalLM):
    name = "past_key_values"

    def forward(self, input_ids: Any, past_key_values: Any = None, **kwargs: Any) -> Any:
        return answered(self, input_ids, past_key_values, kwargs)


def answered(model: Any, ids: Any, cache: Any, kwargs: dict[str, Any]) -> Any:
    assert kwargs.keys().isdisjoint(caches.NAMES)
    found = LlamaForCausalLM.forward(model, ids, **caches.given(LlamaForCausalLM, cache), **kwargs)
    return SimpleNamespace(logits=found.logits, **{model.name: caches.taken(found)})


@pytest.fixture(params=[Newer, Older])
def model(request: pytest.FixtureRequest) -> LlamaForCausalLM:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "vocab_size": 40}
    torch.manual_seed(0)
    made: LlamaForCausalLM = request.param(LlamaConfig(num_attention_heads=2, **sizes)).eval()
    return made


def test_every_forward_gets_its_cache_by_the_name_that_it_knows(model: Any) -> None:
    with torch.no_grad():
        due = model(IDS, use_cache=False).logits
    torch.testing.assert_close(chunked(model, IDS, (3, 9, 2)), due)
    given: Any = SimpleNamespace(prompt=IDS[:, :PROMPT], tokens=IDS)
    torch.testing.assert_close(torch.cat(Subject.decode(given, model).logits, 1), due)
    assert watch(model)[1].get_seq_length() > 0
    difference = probe._cached(model, IDS[0].tolist())
    assert difference is not None
    assert difference < 1e-5


def test_the_cache_of_an_output_is_found_by_the_name_that_it_has(model: Any) -> None:
    assert held_by(model(IDS, use_cache=True)) == IDS.shape[1]
    assert held_by(model(IDS, use_cache=False)) == 0
    assert caches.taken(SimpleNamespace(logits=None)) is None


def test_a_release_s_answers_come_with_the_cache_that_it_gave(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = SimpleNamespace(from_pretrained=lambda *_, **__: model)
    monkeypatch.setattr("transformers.LlamaForCausalLM", read)
    text = IDS[0].tolist()
    ways = [answers._read(None, "LlamaForCausalLM", text, single) for single in (0, 5)]
    assert ways[0] == pytest.approx(ways[1], abs=1e-5)
