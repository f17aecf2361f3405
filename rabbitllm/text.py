"""From a prompt's token ids to an answer, and from its tokens to text as they come."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from rabbitllm.model import StreamedModel
from rabbitllm.prompt import room

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What a decoder writes for a character of which some bytes are still to come."""
PENDING = 8
"""Tokens after which they are taken as the bytes of no character."""
COLD = 1e-5
"""A temperature below it is zero: the second best token's share is, and float32 overflows."""


@dataclass(frozen=True)
class Answer:
    """How a generation went; its text was handed on as it came.

    Attributes:
        prompt_tokens: tokens of the prompt.
        new_tokens: tokens generated, an end-of-text token included.
        finish_reason: "stop" at an end of text or a stop string, "length" at the limit,
            "cancelled" when the caller gave up.
        first_seconds: until the first token.
        other_seconds: from the first token to the last.
    """

    prompt_tokens: int
    new_tokens: int
    finish_reason: Literal["stop", "length", "cancelled"]
    first_seconds: float
    other_seconds: float

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding, the first token left out; None when there was no other."""
        return (self.new_tokens - 1) / self.other_seconds if self.other_seconds else None


def generate(
    model: StreamedModel,
    prompt: torch.Tensor,
    emit: Callable[[str], object],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    cancelled: threading.Event | None = None,
    keep: list[int] | None = None,
    ends: Iterable[int] = (),
    **sampling: Any,
) -> Answer:
    """Generates after a prompt, and hands the text on as soon as it is certain.

    Args:
        model: what generates.
        prompt: token ids [1, tokens].
        emit: called with each new piece of text, from this thread.
        max_new_tokens: the most tokens to generate; the model's context may leave fewer.
        stop: strings that end the answer and are no part of it.
        cancelled: once set, generation ends with the token under way.
        keep: gets the generated ids.
        ends: ids that end the answer, besides the checkpoint's.
        sampling: options of transformers' `generate`; the checkpoint's own otherwise.

    Raises:
        ValueError: the prompt is empty, or longer than the model's context.
    """
    length = prompt.shape[1]
    limit = min(max_new_tokens, room(model, length))
    stream = TextStream(model.tokenizer, emit, stop)
    listener = _Listener(stream, length, cancelled or threading.Event())
    ends = end_of_text(model).union(ends)
    pad = model.generation_config.pad_token_id
    generator: Any = model  # transformers annotates the self of `generate` with a protocol
    begun = time.perf_counter()
    generator.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        stopping_criteria=StoppingCriteriaList([listener]),
        max_new_tokens=limit,
        eos_token_id=sorted(ends) or None,
        pad_token_id=pad if pad is not None or not ends else min(ends),
        **sampling,
    )
    stream.end()
    if keep is not None:
        keep += stream.tokens
    ended = stream.stopped or stream.tokens[-1] in ends
    return Answer(
        prompt_tokens=length,
        new_tokens=len(stream.tokens),
        finish_reason="stop" if ended else "length" if len(stream.tokens) >= limit else "cancelled",
        first_seconds=listener.times[0] - begun,
        other_seconds=listener.times[-1] - listener.times[0],
    )


def sampling(temperature: float | None, top_p: float | None) -> dict[str, Any]:
    """Options of transformers' `generate`; what is not asked for stays the checkpoint's own.

    Args:
        temperature: from 0, which is greedy; None leaves it to the checkpoint.
        top_p: the share of probability that is drawn from; None leaves it to the checkpoint.
    """
    if temperature is not None and temperature < COLD:
        return {"do_sample": False}
    given = {"temperature": temperature, "top_p": top_p}
    asked = {name: value for name, value in given.items() if value is not None}
    return asked | {"do_sample": True} if asked else {}


class TextStream:
    """Decodes tokens as they come; keeps back only what a later token may change.

    Args:
        tokenizer: what decodes.
        emit: called with each new piece of text.
        stops: strings at which the text ends; neither they nor what follows is emitted.

    Attributes:
        tokens: the generated ids.
        stopped: a stop string has come.
    """

    def __init__(
        self, tokenizer: Any, emit: Callable[[str], object], stops: Sequence[str] = ()
    ) -> None:
        self.tokens: list[int] = []
        self.stopped = False
        self._tokenizer = tokenizer
        self._emit = emit
        self._stops = [stop for stop in stops if stop]
        self._context = 0  # the first token that is decoded along, for the spaces it decides
        self._decoded = 0  # the first token whose text is not out yet
        self._held = ""

    def put(self, tokens: Sequence[int]) -> None:
        """Takes the ids that come next."""
        self.tokens += tokens
        before = self._decode(self._context, self._decoded)
        after = self._decode(self._context, len(self.tokens))
        if after.endswith(REPLACEMENT) and len(self.tokens) - self._decoded < PENDING:
            return
        if len(after) > len(before):  # else special tokens, which say nothing of spaces
            self._context = self._decoded
        self._decoded = len(self.tokens)
        self._hand_on(after[len(before) :])

    def end(self) -> None:
        """Hands on what was kept back."""
        before = self._decode(self._context, self._decoded)
        self._hand_on(self._decode(self._context, len(self.tokens))[len(before) :])
        if self._held and not self.stopped:
            self._emit(self._held)

    def _decode(self, start: int, stop: int) -> str:
        # Some tokenizers ask for spaces before punctuation to be removed, which older releases do;
        # the model wrote them.
        text: str = self._tokenizer.decode(
            self.tokens[start:stop],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return text

    def _hand_on(self, text: str) -> None:
        if self.stopped:
            return
        text = self._held + text
        found = [position for stop in self._stops if (position := text.find(stop)) >= 0]
        if found:
            self.stopped = True
        safe = min(found) if found else len(text) - self._possible_stop(text)
        self._held = text[safe:]
        if safe:
            self._emit(text[:safe])

    def _possible_stop(self, text: str) -> int:
        """The length of the longest end of `text` that a stop string begins with."""
        longest = max((len(stop) for stop in self._stops), default=1)
        for length in range(min(len(text), longest - 1), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0


class _Listener(StoppingCriteria):
    """Passes tokens on where `generate` asks whether to stop: a streamer would hear of them later.

    Attributes:
        times: when each token, or several at once, came, in seconds of `time.perf_counter`.
    """

    def __init__(self, stream: TextStream, length: int, cancelled: threading.Event) -> None:
        self.times: list[float] = []
        self._stream = stream
        self._length = length  # of the prompt, then of what has come
        self._cancelled = cancelled

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        new = input_ids[0, self._length :].tolist()
        self._length += len(new)
        self.times.append(time.perf_counter())
        self._stream.put(new)
        stop = self._stream.stopped or self._cancelled.is_set()
        return torch.full((input_ids.shape[0],), stop, dtype=torch.bool, device=input_ids.device)


def end_of_text(model: StreamedModel) -> set[int]:
    """The tokens that end an answer: the checkpoint's, and the tokenizer's end of a turn.

    The tokenizer of a model that was tuned for chats often has one that its generation_config.json,
    the base model's, does not list.
    """
    ids = model.generation_config.eos_token_id
    stated = set(ids) if isinstance(ids, list) else {ids}
    names = ("eos_token_id", "eot_token_id")
    return {*stated, *(getattr(model.tokenizer, name, None) for name in names)} - {None}
