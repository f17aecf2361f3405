"""Answers of a form, JSON or calls: llguidance says which tokens may come next.

https://github.com/guidance-ai/llguidance
"""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from transformers import LogitsProcessor

from rabbitllm.model import StreamedModel
from rabbitllm.serving.calling import grammar_of_calls
from rabbitllm.serving.errors import ApiError
from rabbitllm.serving.parts import Written
from rabbitllm.text import end_of_text

FORM: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How the JSON is written: with free white space a small model may write nothing else."""


class Grammars:
    """Makes what keeps a model's answers to a grammar."""

    def __init__(self, model: StreamedModel) -> None:
        self._model = model
        self._read: Any = None

    def of_json(self, schema: Any, param: str) -> LogitsProcessor:
        """For one answer that is JSON by a schema.

        Args:
            schema: of JSON.
            param: the request's field that asks for it.

        Raises:
            ApiError: the schema is none, the library is not installed, or it cannot read the
                model's tokenizer.
        """
        tokenizer = self._tokenizer(param)
        from llguidance import LLMatcher

        def grammar() -> str:
            return str(LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=FORM))

        return self._processor(grammar, tokenizer, param)

    def of_calls(
        self, written: Written, functions: Sequence[Mapping[str, Any]], param: str
    ) -> LogitsProcessor:
        """For one answer whose calls keep to their functions' schemas.

        Args:
            written: how the model writes calls.
            functions: see `grammar_of_calls`.
            param: the request's field that asks for it.

        Raises:
            ApiError: as `of_json`.
        """
        tokenizer = self._tokenizer(param)
        from llguidance import LLMatcher

        def grammar() -> str:
            added = self._model.tokenizer.get_added_vocab()
            lark = grammar_of_calls(written, functions, FORM, added, self._ends)
            return str(LLMatcher.grammar_from_lark(lark))

        return self._processor(grammar, tokenizer, param)

    def _processor(self, make: Callable[[], str], tokenizer: Any, param: str) -> LogitsProcessor:
        from llguidance import LLMatcher

        try:
            matcher = LLMatcher(tokenizer, make())
        except ValueError as error:
            raise ApiError(400, f"{param}: {error}", param=param) from error
        if problem := matcher.get_error():
            raise ApiError(400, f"{param}: {problem.splitlines()[0]}", param=param)
        return Constraint(matcher, self._ends, tokenizer.vocab_size)

    @cached_property
    def _ends(self) -> list[int]:
        return sorted(end_of_text(self._model))

    def _tokenizer(self, param: str) -> Any:
        """The model's tokenizer as llguidance has it, read once."""
        if self._read is not None:
            return self._read
        try:
            from llguidance.hf import from_tokenizer
        except ImportError as error:
            reason = f"{param} needs this on the server: pip install 'rabbitllm[json]'"
            raise ApiError(400, reason, param=param) from error
        tokenizer, vocabulary = self._model.tokenizer, self._model.config.get_text_config()
        size = max(len(tokenizer), vocabulary.vocab_size)
        try:
            self._read = from_tokenizer(tokenizer, size, self._ends)
        except (TypeError, ValueError) as error:
            reason = f"{param}: this model's tokenizer cannot be read for it: {error}"
            raise ApiError(400, reason, param=param) from error
        return self._read


class Constraint(LogitsProcessor):
    """Leaves the tokens that the grammar takes next, and ends of text where it may end.

    Args:
        matcher: llguidance's, at the beginning of the answer.
        ends: ids that end an answer.
        size: of the vocabulary, as the matcher counts it.
    """

    def __init__(self, matcher: Any, ends: Collection[int], size: int) -> None:
        self._matcher = matcher
        self._ends = list(ends)
        self._mask = torch.zeros(1, -(-size // 32), dtype=torch.int32)
        self._taken: int | None = None  # tokens of prompt and answer that the matcher knows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [1, vocabulary] with what may not come at minus infinity."""
        from llguidance.torch import fill_next_token_bitmask

        for token in input_ids[0, self._taken or input_ids.shape[1] :].tolist():
            self._matcher.consume_token(token)
        self._taken = input_ids.shape[1]
        allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
        if self._matcher.is_stopped():
            allowed[self._ends] = True
        else:
            fill_next_token_bitmask(self._matcher, self._mask)
            bits = self._mask[0, :, None] >> torch.arange(32, dtype=torch.int32) & 1
            allowed = bits.flatten()[: len(allowed)].bool()
        return scores.masked_fill(~allowed.to(scores.device), -torch.inf)
