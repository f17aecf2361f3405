"""From a request's fields to the token ids that it is answered behind."""

import reprlib
from collections.abc import Callable
from typing import Any

import torch

from rabbitllm.model import StreamedModel
from rabbitllm.prompt import check_template_kwargs, encode_chat, encode_ids, encode_text
from rabbitllm.serving.errors import ApiError
from rabbitllm.serving.grammar import Grammars
from rabbitllm.serving.parts import PLAIN, marks_of, written_calls
from rabbitllm.serving.replies import CHAT, COMPLETION, Reply, Shape
from rabbitllm.serving.requests import ChatRequest, CompletionRequest, Kind, Request, validated

UNUSABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a chat template raises at messages that it was not written for."""
PROMPT_END = 8
"""Tokens of a prompt in which thoughts may begin."""
ENDPOINTS: dict[str, tuple[type[ChatRequest] | type[CompletionRequest], Shape]] = {
    "/v1/chat/completions": (ChatRequest, CHAT),
    "/v1/completions": (CompletionRequest, COMPLETION),
}
"""What each path takes, and the shape of what it gives."""


class Prompts:
    """Reads requests to one model.

    Args:
        model: that answers.
        name: what clients call it.
        max_new_tokens: the most tokens of an answer whose request sets no limit.
    """

    def __init__(self, model: StreamedModel, name: str, max_new_tokens: int) -> None:
        self.name = name
        self._model = model
        self._max_new_tokens = max_new_tokens
        self._grammars = Grammars(model)

    def understand(
        self, kind: type[Kind], fields: Any
    ) -> tuple[Kind, torch.Tensor, list[dict[str, Any]]]:
        """What a request asks for, its prompt as token ids [1, tokens], and options of `Batch.add`.

        There are options for each of the answers.

        Args:
            kind: of request.
            fields: of its body, as JSON has them.

        Raises:
            ApiError: it asks for what cannot be done.
        """
        asked = validated(kind, fields)
        self.check_name(asked.model)
        encode: Callable[[Any], torch.Tensor] = (
            self._chat if isinstance(asked, ChatRequest) else self._plain
        )
        try:
            prompt = encode(asked)
        except UNUSABLE as error:
            said = str(error) if isinstance(error, ValueError) else repr(error)
            raise ApiError(400, f"{kind.source}: {said}", param=kind.source) from error
        return asked, prompt, self._options(asked)

    def _options(self, asked: Request) -> list[dict[str, Any]]:
        limit = asked.limit or self._max_new_tokens
        shared = {"max_new_tokens": limit, "stop": asked.stop, "top": asked.top}
        return [
            shared | {"seed": seed} | self._form(asked) | asked.sampling() for seed in asked.seeds
        ]

    def _form(self, asked: Request) -> dict[str, Any]:
        """The option that keeps one answer to a form; none if it is free."""
        schema = asked.schema_of_answers
        if schema is not None:
            return {"processors": [self._grammars.of_json(schema, "response_format")]}
        if isinstance(asked, ChatRequest) and (functions := asked.strict_functions):
            written = written_calls(self._template(asked), self._unseen)
            assert written, "tools are refused where none is known"
            return {"processors": [self._grammars.of_calls(written, functions, "tools")]}
        return {}

    def reply(self, asked: Request, shape: Shape, prompt: torch.Tensor) -> Reply:
        """What the answers become."""
        echo = asked.prompt if isinstance(asked, CompletionRequest) and asked.echo else ""
        if not isinstance(echo, str):
            echo = self._model.tokenizer.decode(echo, skip_special_tokens=True)
        tokenizer, marks = self._model.tokenizer, PLAIN
        if isinstance(asked, ChatRequest):
            end = tokenizer.decode(prompt[0, -PROMPT_END:].tolist())
            marks = marks_of(self._template(asked), end, bool(asked.offered), self._unseen)
        return Reply(shape, self.name, tokenizer, echo, asked.top, marks)

    @property
    def _unseen(self) -> list[str]:
        return list(self._model.tokenizer.all_special_tokens)

    def _template(self, asked: ChatRequest) -> str:
        return str(self._model.tokenizer.get_chat_template(tools=asked.offered))

    def check_name(self, asked: str) -> None:
        """Whether a client means this model.

        Raises:
            ApiError: it does not.
        """
        if asked != self.name:
            raise ApiError(
                404,
                f"No model {reprlib.repr(asked)} here, only {self.name!r}.",
                "model_not_found",
                "model",
            )

    def _chat(self, asked: ChatRequest) -> torch.Tensor:
        """Token ids [1, tokens] of a conversation."""
        if not self._model.tokenizer.chat_template:
            raise ApiError(400, "This model has no chat template. Use /v1/completions.")
        try:
            check_template_kwargs(self._model, asked.chat_template_kwargs)
        except ValueError as error:
            name = "chat_template_kwargs"
            raise ApiError(400, f"{name}: {error}", param=name) from error
        template = self._template(asked)
        if asked.offered and ("tools" not in template or not written_calls(template, self._unseen)):
            reason = "tools: this model's chat template shows no way of calling that is known here"
            raise ApiError(400, reason, param="tools")
        turns = [turn.as_template_input() for turn in asked.messages]
        return encode_chat(self._model, turns, asked.chat_template_kwargs, asked.offered)

    def _plain(self, asked: CompletionRequest) -> torch.Tensor:
        """Token ids [1, tokens] of a completion's prompt, which may be token ids already."""
        if isinstance(asked.prompt, str):
            return encode_text(self._model, asked.prompt)
        vocabulary = self._model.config.get_text_config().vocab_size
        if not all(0 <= token < vocabulary for token in asked.prompt):
            raise ValueError(f"token ids go from 0 to {vocabulary - 1}")
        return encode_ids(self._model, asked.prompt)
