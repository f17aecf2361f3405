from __future__ import annotations

import inspect

import pytest
from transformers import CONFIG_MAPPING, LlamaForCausalLM, MistralForCausalLM

import rabbitllm
from rabbitllm import RabbitLLMLlama2, RabbitLLMMistral, StreamedModel
from rabbitllm.families import FAMILIES, UNLISTED, family_of
from rabbitllm.model import streamed_class

NAMES = {
    "RabbitLLMLlama2",
    "RabbitLLMQWen2",
    "RabbitLLMMistral",
    "RabbitLLMMixtral",
    "RabbitLLMInternLM",
    "RabbitLLMBaichuan",
    "RabbitLLMQWen",
    "RabbitLLMChatGLM",
}
WITHOUT_NATIVE_CLASS = {"internlm", "internlm2", "internlm3", "baichuan", "qwen", "chatglm"} | {
    "kimi_k2"
}


def test_the_classes_have_the_names_that_users_know() -> None:
    assert {row.class_name for row in FAMILIES} == NAMES
    assert set(rabbitllm.__all__) > NAMES
    for name in rabbitllm.__all__:
        assert getattr(rabbitllm, name) is not None
    assert set(rabbitllm.__all__) <= set(dir(rabbitllm))
    with pytest.raises(AttributeError, match="RabbitLLMLlama3"):
        _ = rabbitllm.RabbitLLMLlama3  # type: ignore[attr-defined]


def test_a_model_type_belongs_to_one_family() -> None:
    listed = [model_type for row in FAMILIES for model_type in row.model_types]
    assert len(listed) == len(set(listed))
    for row in FAMILIES:
        assert all(family_of(model_type) is row for model_type in row.model_types)


def test_listed_model_types_exist() -> None:
    listed = {model_type for row in FAMILIES for model_type in row.model_types}
    assert listed - set(CONFIG_MAPPING) <= WITHOUT_NATIVE_CLASS


@pytest.mark.parametrize("model_type", ["olmo2", "gpt2", "no such thing", ""])
def test_what_is_not_listed_is_llama_like(model_type: str) -> None:
    assert family_of(model_type) is UNLISTED
    assert UNLISTED.cls is RabbitLLMLlama2


@pytest.mark.parametrize(
    ("model_type", "name"),
    [
        ("llama", "RabbitLLMLlama2"),
        ("qwen3_moe", "RabbitLLMQWen2"),
        ("mistral", "RabbitLLMMistral"),
        ("mixtral", "RabbitLLMMixtral"),
        ("internlm2", "RabbitLLMInternLM"),
        ("baichuan", "RabbitLLMBaichuan"),
        ("qwen", "RabbitLLMQWen"),
        ("chatglm", "RabbitLLMChatGLM"),
        ("gemma3_text", "RabbitLLMLlama2"),
        ("deepseek_v3", "RabbitLLMLlama2"),
        ("phi3", "RabbitLLMLlama2"),
    ],
)
def test_families_by_model_type(model_type: str, name: str) -> None:
    assert family_of(model_type).class_name == name


def test_a_class_of_both_is_made_once_and_passes_for_stock() -> None:
    both = streamed_class(RabbitLLMMistral, MistralForCausalLM)
    assert both is streamed_class(RabbitLLMMistral, MistralForCausalLM)
    assert both is not streamed_class(RabbitLLMLlama2, MistralForCausalLM)
    assert both is not streamed_class(RabbitLLMMistral, LlamaForCausalLM)
    assert issubclass(both, (RabbitLLMMistral,))
    assert issubclass(both, (MistralForCausalLM,))
    assert issubclass(both, (StreamedModel,))
    assert both.__name__ == "MistralForCausalLM"
    assert both.__module__ == MistralForCausalLM.__module__
    assert both.device is StreamedModel.device
    # The pipeline runs stock's forward; what it takes is asked by transformers.
    assert inspect.signature(both.forward) == inspect.signature(MistralForCausalLM.forward)
    assert both.generate is StreamedModel.generate  # it weighs a prompt, and calls stock's
    arguments = list(inspect.signature(MistralForCausalLM.generate).parameters)
    named = [name for name in inspect.signature(both.generate).parameters if name != "args"]
    assert named[:-1] == arguments[: len(named) - 1]  # the others are passed on
