from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import rabbitllm
from rabbitllm import AutoModel, StreamedModel
from rabbitllm.deprecated import ARGUMENTS, NAMES


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_without_effect_warns_where_it_was_passed(
    name: str, checkpoint: Callable[..., Path]
) -> None:
    with pytest.warns(FutureWarning, match=f"^{name}=30 has no effect") as caught:
        AutoModel.from_pretrained(checkpoint(), device="cpu", host_memory="min", **{name: 30})
    (warning,) = caught
    assert warning.filename == __file__
    assert ARGUMENTS[name] in str(warning.message)


def test_an_argument_that_works_is_not_among_them() -> None:
    assert not inspect.signature(AutoModel.from_pretrained).parameters.keys() & ARGUMENTS.keys()


def test_without_them_nothing_warns(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        streamed(checkpoint())


def test_an_argument_that_never_was_is_an_error(checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'cache_layer'"):
        AutoModel.from_pretrained(checkpoint(), cache_layer=30)


@pytest.mark.parametrize(("old", "new"), NAMES.items())
def test_a_renamed_class_is_the_new_one_and_warns(old: str, new: str) -> None:
    with pytest.warns(FutureWarning, match=f"rabbitllm.{old} is named {new}") as caught:
        found = getattr(rabbitllm, old)
    assert found is getattr(rabbitllm, new)
    assert caught[0].filename == __file__


def test_a_name_that_never_was_is_an_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'RabbitLLMQwen9'"):
        _ = rabbitllm.RabbitLLMQwen9


def test_family_classes_say_how_to_load() -> None:
    with pytest.raises(TypeError, match=r"RabbitLLMQWen2.*AutoModel\.from_pretrained"):
        rabbitllm.RabbitLLMQWen2("some/model")
