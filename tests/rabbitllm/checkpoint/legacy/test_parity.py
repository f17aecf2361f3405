"""The streamed native class gives what the families' definitions give."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import pad

from harness.measuring.references import REFERENCES
from rabbitllm import CheckpointError
from rabbitllm.checkpoint.tokenizer import load_tokenizer

TOLERANCE = 2e-5
CLASSES = {
    "internlm": ("RabbitLLMInternLM", "LlamaForCausalLM"),
    "internlm2": ("RabbitLLMInternLM", "LlamaForCausalLM"),
    "internlm3": ("RabbitLLMInternLM", "LlamaForCausalLM"),
    "baichuan-7b": ("RabbitLLMBaichuan", "LlamaForCausalLM"),
    "baichuan2-7b": ("RabbitLLMBaichuan", "LlamaForCausalLM"),
    "baichuan-13b": ("RabbitLLMBaichuan", "LlamaForCausalLM"),
    "baichuan2-13b": ("RabbitLLMBaichuan", "LlamaForCausalLM"),
    "qwen": ("RabbitLLMQWen", "Qwen2ForCausalLM"),
    "chatglm2": ("RabbitLLMChatGLM", "GlmForCausalLM"),
    "chatglm2-32k": ("RabbitLLMChatGLM", "GlmForCausalLM"),
    "chatglm3": ("RabbitLLMChatGLM", "GlmForCausalLM"),
}


@pytest.fixture(params=REFERENCES)
def architecture(request):
    return request.param


@pytest.fixture(params=["sdpa", "eager"])
def loaded(request, architecture, original, streamed):
    folder, reference = original(architecture)
    return streamed(folder, attn_implementation=request.param), reference


@pytest.fixture
def padded(ids):
    """The batch with its first row padded on the left, and its mask."""
    mask = torch.ones_like(ids)
    mask[0, :7] = 0
    return ids.masked_fill(mask == 0, 0), mask


def extend(reference, ids, mask, steps):
    for _ in range(steps):
        ids = torch.cat((ids, reference(ids, mask)[:, -1:].argmax(-1)), dim=1)
        mask = pad(mask, (0, 1), value=1)
    return ids


def test_family_and_stock_class(architecture, loaded):
    family, stock = CLASSES[architecture]
    model, _ = loaded
    assert type(model).__name__ == stock
    assert family in [cls.__name__ for cls in type(model).__mro__]


def test_nothing_is_said_of_tensors_that_transformers_computes(
    architecture, original, streamed, caplog
):
    folder, _ = original(architecture)
    streamed(folder)
    assert "not used" not in caplog.text


def test_prefill(loaded, ids, run, distance):
    model, reference = loaded
    assert distance(run(model, ids), reference(ids)) <= TOLERANCE


def test_every_key_was_read(architecture, loaded):
    model, reference = loaded
    native = sum(parameter.numel() for parameter in model.parameters())
    kept = {k: t for k, t in reference.weights.items() if not k.endswith("inv_freq")}
    assert native == sum(tensor.numel() for tensor in kept.values())


def test_cached_decode(loaded, ids, distance):
    model, reference = loaded
    with torch.no_grad():
        out = model(ids[:, :15], use_cache=True)
        parts = [out.logits]
        for position in range(15, ids.shape[1]):
            step = ids[:, position : position + 1]
            out = model(step, past_key_values=out.past_key_values, use_cache=True)
            parts.append(out.logits)
    assert distance(torch.cat(parts, dim=1), reference(ids)) <= TOLERANCE


def test_left_padded_batch(loaded, padded, run, distance):
    model, reference = loaded
    ids, mask = padded
    got, wanted = run(model, ids, attention_mask=mask), reference(ids, mask)
    assert distance(got[mask == 1], wanted[mask == 1]) <= TOLERANCE


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_greedy_generation(loaded, padded, cache):
    model, reference = loaded
    ids, mask = padded
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    options = {} if cache == "dynamic" else {"cache_implementation": cache}
    got = model.generate(
        ids, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, do_sample=False, **options
    )
    assert torch.equal(got, extend(reference, ids, mask, 8))


def test_internlm3_on_releases_without_its_class(
    without_native, original, streamed, ids, run, distance
):
    folder, reference = original("internlm3")
    model = streamed(folder)
    assert model.config.model_type == "llama"
    assert distance(run(model, ids), reference(ids)) <= TOLERANCE


@pytest.mark.parametrize("architecture", ["internlm", "internlm2", "internlm3"], indirect=True)
def test_texts_beyond_the_context(architecture, copy, configure, streamed, ids, run, distance):
    folder, _ = copy(architecture)
    configure(folder, max_position_embeddings=8)
    reference = REFERENCES[architecture].reference(folder)
    assert distance(run(streamed(folder), ids), reference(ids)) <= TOLERANCE
    configure(folder, rotary={"base": 10000, "type": "origin"}, rope_scaling={})
    assert distance(run(streamed(folder), ids), reference(ids)) > 0.05


def test_the_originals_can_be_deleted(copy, streamed, ids, run, distance):
    folder, reference = copy("baichuan-7b")
    for _ in range(3):
        model = streamed(folder, delete_original=True)
        assert not list(folder.glob("pytorch_model*"))
        assert distance(run(model, ids), reference(ids)) <= TOLERANCE


def test_originals_that_a_store_holds_only_normalised_stay(copy, streamed):
    folder, _ = copy("baichuan2-7b")
    with pytest.raises(CheckpointError, match=r"lm_head.weight .* computed from them"):
        streamed(folder, delete_original=True)
    assert list(folder.glob("pytorch_model*"))


def test_a_half_precision_checkpoint(copy, streamed, ids, run, distance):
    folder, reference = copy("baichuan2-13b")
    model = streamed(folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert distance(run(model, ids).float(), reference(ids)) <= 0.05


def test_attributes_of_the_config_and_a_config_may_be_given(original, streamed, ids, run):
    folder, _ = original("baichuan-7b")
    model = streamed(folder, use_cache=False, rms_norm_eps=0.1)
    assert model.config.use_cache is False
    assert model.config.rms_norm_eps == 0.1
    again = streamed(folder, config=model.config)
    assert run(again, ids).equal(run(model, ids))
    assert not run(streamed(folder), ids).equal(run(model, ids))


@pytest.mark.parametrize("architecture", ["internlm", "baichuan-7b", "chatglm2"])
def test_the_published_layout_is_read(architecture, original):
    folder, _ = original(architecture)
    assert sorted(path.name for path in folder.glob("pytorch_model*")) == [
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
    ]
    ids = load_tokenizer(folder, trust_remote_code=True).encode("ab c", add_special_tokens=False)
    assert len(ids) == 5  # sentencepiece puts a space in front
