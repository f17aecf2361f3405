from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rabbitllm import StreamedModel
from rabbitllm.prompt import encode_chat, encode_ids, encode_text, room

MESSAGES = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]


@pytest.fixture
def model(talker: Path, streamed: Callable[..., StreamedModel]) -> StreamedModel:
    return streamed(talker)


def test_a_conversation_goes_through_the_template(model: StreamedModel) -> None:
    ids = encode_chat(model, MESSAGES)
    assert model.tokenizer.decode(ids[0]) == "<user>Who?\n<assistant>Me.\n<assistant>"


def test_without_a_template_the_contents_follow_one_another(model: StreamedModel) -> None:
    model.tokenizer.chat_template = None
    assert torch.equal(encode_chat(model, MESSAGES), encode_text(model, "Who?\nMe."))


def test_a_template_may_refuse(model: StreamedModel) -> None:
    model.tokenizer.chat_template = "{{ raise_exception('no user twice') }}"
    with pytest.raises(ValueError, match="refuses these messages: no user twice"):
        encode_chat(model, MESSAGES)


def test_variables_reach_the_template(model: StreamedModel) -> None:
    model.tokenizer.chat_template += "{% if not enable_thinking %}<quick>{% endif %}"
    for thinking, end in ((True, "<assistant>"), (False, "<quick>")):
        ids = encode_chat(model, MESSAGES, {"enable_thinking": thinking})
        assert model.tokenizer.decode(ids[0]).endswith(end)


@pytest.mark.parametrize("name", ["enable", "messages", "chat_template", "add_generation_prompt"])
def test_a_variable_that_is_not_the_callers_is_refused(model: StreamedModel, name: str) -> None:
    model.tokenizer.chat_template += "{{ enable_thinking }}"
    with pytest.raises(ValueError, match=f"has no '{name}' to set"):
        encode_chat(model, MESSAGES, {name: True})


def test_without_a_template_there_is_no_variable(model: StreamedModel) -> None:
    model.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="has no 'enable_thinking' to set"):
        encode_chat(model, MESSAGES, {"enable_thinking": True})


def test_the_context_limits_a_prompt(model: StreamedModel) -> None:
    model.config.max_position_embeddings = 10
    assert room(model, encode_ids(model, [7] * 9).shape[1]) == 1
    for encode in (
        lambda: encode_ids(model, [7] * 11),
        lambda: encode_text(model, "12345678901"),
    ):
        with pytest.raises(ValueError, match="11 tokens, and the model's context is 10"):
            encode()
    with pytest.raises(ValueError, match="empty"):
        encode_text(model, "")
