from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from rabbitllm.releases import golden, probe
from rabbitllm.releases.verdicts import CHECKS, judge


@pytest.fixture(autouse=True)
def _modules(monkeypatch, tmp_path):
    """Keep the checkpoint's code out of the user's cache."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))


@pytest.fixture
def ask(sharp):
    def answer(**changes):
        question = {
            "folder": str(sharp),
            "trust": True,
            "dtype": "float32",
            "backends": ["eager", "sdpa"],
            "input": None,
            "watched": None,
            "weights": False,
        }
        return json.loads(json.dumps(probe.answer({**question, **changes})))

    return answer


def statuses(answer, right=None):
    return {result.check: result.status for result in judge(answer, right, "float32")}


def test_all_is_well_with_a_checkpoint_and_its_own_answer(ask):
    answer = ask()
    assert answer["errors"] == {}
    assert statuses(answer) == dict.fromkeys(CHECKS, "pass")
    right = golden.make("5.0.0", {}, answer)
    again = ask(input=answer["input"], watched=answer["watched"])
    results = {result.check: result for result in judge(again, right, "float32")}
    assert {result.status for result in results.values()} == {"pass"}
    assert results["logits"].detail == "same bits"
    assert len(answer["tokens"]) == probe.STEPS
    assert answer["chat"] == "<user>What is 2 + 2?"


def test_logits_that_change_with_what_layers_are_told_are_found(ask, monkeypatch):
    """Layers are told places, as before 5.4, and then no more."""
    stock = LlamaDecoderLayer.__call__

    def told(self, hidden_states, *args, **kwargs):
        place = kwargs["position_ids"][0]
        return stock(self, hidden_states, *args, **{**kwargs, "cache_position": place})

    with monkeypatch.context() as patch:
        patch.setattr(LlamaDecoderLayer, "__call__", told)
        before = ask()
    assert statuses(before) == dict.fromkeys(CHECKS, "pass")
    after = ask(input=before["input"], watched=before["watched"])
    found = statuses(after, golden.make("5.3.0", {}, before))
    assert {check for check, status in found.items() if status == "fail"} >= {"logits"}
    assert found["load"] == found["weights"] == found["cached"] == found["attention"] == "pass"


def test_weights_that_are_missing_are_named(ask, sharp):
    kept = load_file(sharp / "model.safetensors")
    del kept["lm_head.weight"]
    save_file(kept, sharp / "model.safetensors", {"format": "pt"})
    results = {result.check: result for result in judge(ask(), None, "float32")}
    assert results["weights"].status == "fail"
    assert results["weights"].detail == "random weights (missing: lm_head.weight)"


def test_code_that_is_not_trusted_does_not_run(ask):
    answer = ask(trust=False)
    found = statuses(answer)
    assert found["load"] == "fail"
    assert {found[name] for name in ("weights", "logits", "tokens", "cached")} == {"skip"}


def test_logits_that_are_no_numbers_are_not_right(ask, sharp):
    kept = load_file(sharp / "model.safetensors")
    kept["lm_head.weight"][3] = math.nan
    save_file(kept, sharp / "model.safetensors", {"format": "pt"})
    assert statuses(ask())["logits"] == "fail"


def test_a_cache_that_is_not_read_is_found(ask, monkeypatch):
    whole = probe._run

    def forgetful(model, ids, **arguments):
        for name in probe.CACHES:
            arguments.pop(name, None)
        return whole(model, ids, **arguments)

    monkeypatch.setattr(probe, "_run", forgetful)
    assert statuses(ask())["cached"] == "fail"


def test_a_backend_that_computes_something_else_is_found(ask, monkeypatch):
    from transformers.models.llama import modeling_llama

    eager = modeling_llama.eager_attention_forward

    def wrong(module, query, *args, **kwargs):
        return eager(module, 2 * query, *args, **kwargs)

    monkeypatch.setattr(modeling_llama, "eager_attention_forward", wrong)
    answer = ask()
    results = {result.check: result for result in judge(answer, None, "float32")}
    assert results["attention"].status == "fail"
    assert "between eager and sdpa" in results["attention"].detail


def test_a_backend_that_is_refused_is_a_failure_only_where_it_worked(ask):
    answer = ask(backends=["sdpa", "nonsense"])
    assert "nonsense" in answer["backends"]["nonsense"]
    assert statuses(answer)["attention"] == "pass"
    right = golden.make("5.0.0", {}, {**answer, "backends": {"sdpa": 0.0, "nonsense": 0.0}})
    results = {result.check: result for result in judge(answer, right, "float32")}
    assert results["attention"].detail.startswith("nonsense is refused: ")


def test_weights_are_made_that_depend_on_names_alone(ask, sharp):
    (sharp / "model.safetensors").unlink()
    first = ask(weights=True)
    assert statuses(first) == dict.fromkeys(CHECKS, "pass")
    made = load_file(sharp / "model.safetensors")
    torch.manual_seed(1)
    ask(weights=True)
    assert made.keys() == load_file(sharp / "model.safetensors").keys()
    assert all(torch.equal(made[n], t) for n, t in load_file(sharp / "model.safetensors").items())


def test_without_a_tokenizer_its_checks_do_not_run(ask, sharp):
    for file in Path(sharp).glob("*tokenizer*"):
        file.unlink()
    found = statuses(ask())
    assert (found["ids"], found["chat"]) == ("skip", "skip")
    assert found["logits"] == "pass"


def test_a_chat_template_that_is_gone_is_a_failure(ask, sharp):
    before = ask()
    (sharp / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    after = ask(input=before["input"], watched=before["watched"])
    assert statuses(after, golden.make("5.0.0", {}, before))["chat"] == "fail"
