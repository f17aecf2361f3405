"""From a conversation or a text to token ids, as many as the model's context holds."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from rabbitllm.model import StreamedModel


def encode_chat(
    model: StreamedModel,
    messages: Sequence[Mapping[str, Any]],
    template_kwargs: Mapping[str, Any] = MappingProxyType({}),
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> torch.Tensor:
    """Token ids [1, tokens] of a conversation, by the tokenizer's chat template.

    Without a template the messages' contents follow one another, a line each.

    Args:
        model: whose tokenizer to use.
        messages: with "role" and "content".
        template_kwargs: variables of the template, such as `enable_thinking`.
        tools: functions that the model may call, by their JSON schemas.

    Raises:
        ValueError: the template has no such variable or refuses the conversation, or what it makes
            of it does not fit the model's context.
    """
    check_template_kwargs(model, template_kwargs)
    if not model.tokenizer.chat_template:
        return encode_text(model, "\n".join(message["content"] for message in messages))
    from jinja2 import TemplateError

    try:
        encoded = model.tokenizer.apply_chat_template(
            list(messages),
            tools=list(tools) if tools else None,
            add_generation_prompt=True,
            return_dict=True,
            **template_kwargs,
        )
    except TemplateError as error:
        raise ValueError(f"The model's chat template refuses these messages: {error}.") from error
    return encode_ids(model, encoded["input_ids"])


def check_template_kwargs(model: StreamedModel, template_kwargs: Iterable[str]) -> None:
    """Whether the model's chat template has variables of these names for a caller to set.

    Raises:
        ValueError: naming one that it has not, or that is not the caller's.
    """
    tokenizer = model.tokenizer
    taken = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters}
    text = str(tokenizer.chat_template or "")
    for name in template_kwargs:
        if name in taken or not re.search(rf"\b{re.escape(name)}\b", text):
            raise ValueError(f"The model's chat template has no {name!r} to set.")


def encode_text(model: StreamedModel, text: str) -> torch.Tensor:
    """Token ids [1, tokens] of plain text.

    Raises:
        ValueError: there are none, or more than fit the model's context.
    """
    return encode_ids(model, model.tokenizer(text)["input_ids"])


def encode_ids(model: StreamedModel, ids: list[int]) -> torch.Tensor:
    """Token ids as a tensor [1, tokens].

    They are counted first: torch takes 0.3 s for a million, in which no other thread runs.

    Raises:
        ValueError: there are none, or more than fit the model's context.
    """
    room(model, len(ids))
    return torch.tensor([ids], dtype=torch.long, device=model.device)


def room(model: StreamedModel, length: int) -> int:
    """Tokens that the model's context has left after a prompt of this length.

    Raises:
        ValueError: the prompt is empty, or fills it.
    """
    if not length:
        raise ValueError("The prompt is empty.")
    context = context_length(model)
    if length >= context:
        raise ValueError(
            f"The prompt has {length} tokens, and the model's context is {context}. Shorten it."
        )
    return context - length


def context_length(model: StreamedModel) -> int:
    """Tokens of the longest text that the model can read and write."""
    fields = model.config.get_text_config().to_dict()  # attributes of some configs raise
    return int(fields.get("max_position_embeddings") or 1 << 30)
