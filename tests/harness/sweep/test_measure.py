from __future__ import annotations

import json
import re

import pytest
import torch

from harness.sweep import measure as module
from harness.sweep.measure import SweepError, stream_type
from harness.sweep.rules import Field, Rules, Type, load_rules
from rabbitllm.streaming.lane import Lane


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def rules() -> Rules:
    return load_rules()


# A mixture, one that returns tuples and calls its cache layer_past, a hybrid whose blocks share
# weights, one that calls a block several times in a forward, one that reads a row of its
# embedding from the weight itself.
@pytest.mark.parametrize("model_type", ["mixtral", "gptj", "zamba", "hrm_text", "gemma4"])
def test_a_type_is_bit_equal_and_all_its_blocks_stream(rules, tmp_path, model_type):
    found = stream_type(model_type, rules, tmp_path)
    assert (found.outcome, found.message, found.fingerprint) == ("bit-equal", "", "")
    assert found.streamed == found.blocks >= 2
    assert found.bytes_from_disk > 0
    assert found.embedding_streams
    assert found.head_streams
    assert 0 < found.parameters < module.LARGEST


@pytest.mark.parametrize("model_type", ["llama4", "mllama"])
def test_a_composite_type_is_written_whole_and_read_as_its_text_part(rules, tmp_path, model_type):
    found = stream_type(model_type, rules, tmp_path)
    assert (found.outcome, found.message) == ("bit-equal", "")
    assert found.written_by.endswith("ForConditionalGeneration")
    assert found.model_class.endswith("ForCausalLM")
    assert json.loads((tmp_path / "config.json").read_text("utf-8"))["model_type"] == model_type


def test_a_type_without_blocks_is_compared_all_the_same(rules, tmp_path, monkeypatch):
    assert stream_type("openai-gpt", rules, tmp_path / "1").outcome == "no-blocks"
    break_streamed(monkeypatch, lambda logits: logits + 1e-6)
    assert stream_type("openai-gpt", rules, tmp_path / "2").outcome == "fails"


def test_a_type_that_stays_large_is_not_buildable(tmp_path):
    found = stream_type("llama", Rules((Field(("num_hidden_layers",), 1),)), tmp_path)
    assert found.outcome == "not-buildable"
    assert re.search(r"has \d{3},\d{3},\d{3} parameters", found.message)
    assert not list(tmp_path.iterdir())


def test_a_config_that_its_class_refuses_is_not_buildable(rules, tmp_path):
    broken = Rules(rules.field, (Type(("llama",), {"num_attention_heads": 7}, "does not divide"),))
    found = stream_type("llama", broken, tmp_path)
    assert found.outcome == "not-buildable"
    assert found.exception
    assert found.fingerprint


def test_what_stock_cannot_run_is_blamed_on_stock(rules, tmp_path, monkeypatch):
    def refuse(*_):
        raise ValueError("stock cannot")

    monkeypatch.setattr("transformers.LlamaForCausalLM.save_pretrained", refuse)
    found = stream_type("llama", rules, tmp_path)
    assert (found.outcome, found.message) == ("reference-broken", "stock cannot")


def test_stock_that_makes_weights_up_is_no_reference(rules, tmp_path, monkeypatch):
    write = module.PreTrainedModel.save_pretrained

    def forgetful(model, folder):
        state = {name: t for name, t in model.state_dict().items() if name != "model.norm.weight"}
        write(model, folder, state_dict=state)

    monkeypatch.setattr(module.PreTrainedModel, "save_pretrained", forgetful)
    found = stream_type("llama", rules, tmp_path)
    assert found.outcome == "reference-broken"
    assert "model.norm.weight" in found.message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits, calls: logits + len(calls), "differently the second time"),
        (lambda logits, calls: logits.log(), "not finite"),
    ],
)
def test_stock_that_is_not_sure_is_no_reference(rules, tmp_path, monkeypatch, change, message):
    calls = []
    answer = module.answer

    def unsure(model):
        calls.append(model)
        said = answer(model)
        return module.Answer(change(said.logits, calls), said.tokens)

    monkeypatch.setattr(module, "answer", unsure)
    found = stream_type("llama", rules, tmp_path)
    assert found.outcome == "reference-broken"
    assert message in found.message


def break_streamed(monkeypatch, change):
    """Change the logits of models that stream, and of no others."""
    answer = module.answer

    def changed(model):
        said = answer(model)
        streams = hasattr(model, "streaming_plan")
        return module.Answer(change(said.logits) if streams else said.logits, said.tokens)

    monkeypatch.setattr(module, "answer", changed)


def test_one_other_bit_fails(rules, tmp_path, monkeypatch):
    def flip(logits):
        logits.view(torch.int32)[0, 3, 5] ^= 1
        return logits

    break_streamed(monkeypatch, flip)
    found = stream_type("llama", rules, tmp_path)
    assert (found.outcome, found.exception) == ("fails", "SweepError")
    assert "logits of the prompt differ" in found.message
    assert found.fingerprint


def test_another_token_fails():
    logits, tokens = torch.zeros(1, module.PROMPT, 8), torch.arange(module.PROMPT + module.LENGTH)
    other = tokens.clone()
    other[module.PROMPT + 2] = 0
    with pytest.raises(SweepError, match="token number 3 differs"):
        module.check_equal(module.Answer(logits, other), module.Answer(logits, tokens))


def test_stale_weights_fail(rules, tmp_path, monkeypatch):
    """The engine broken: a slot is taken for whatever it is asked for."""
    monkeypatch.setattr(Lane, "_holder", lambda self, stage: self.slots[0])
    assert stream_type("llama", rules, tmp_path).outcome == "fails"


def test_an_engine_that_raises_fails_with_its_fingerprint(rules, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no slot is free")

    monkeypatch.setattr("rabbitllm.AutoModel.from_pretrained", refuse)
    found = stream_type("llama", rules, tmp_path)
    assert (found.outcome, found.exception) == ("fails", "RuntimeError")
    assert found.traceback


def test_equal_answers_from_resident_blocks_fail(rules, tmp_path, monkeypatch):
    from rabbitllm import AutoModel

    def all_resident(folder, **options):
        return AutoModel.from_pretrained(folder, **(options | {"host_memory": "1GiB"}))

    monkeypatch.setattr(
        module, "load_streamed", lambda folder, _: all_resident(folder, device="cpu")
    )
    found = stream_type("llama", rules, tmp_path)
    assert (found.outcome, found.message) == ("fails", "none of 4 blocks streamed")
