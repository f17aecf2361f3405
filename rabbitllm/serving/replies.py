"""What clients get back, in the shapes of OpenAI's two kinds of completion."""

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rabbitllm.batching import Row, Share
from rabbitllm.serving.logprobs import chat_logprobs, text_logprobs
from rabbitllm.serving.parts import CALLS, CONTENT, PLAIN, Marks, Splitter, read_calls

DONE = "data: [DONE]\n\n"
COMMENT = ": still running\n\n"
"""An event stream's way to say nothing."""


@dataclass(frozen=True)
class Shape:
    """One kind of completion.

    Attributes:
        prefix: of ids.
        whole: `object` of a response.
        part: `object` of a chunk of a stream.
        choice: text -> what a response's choice holds.
        change: text -> what a chunk's choice holds.
        logprobs: tokenizer, shares -> how a choice gives them.
        opening: what the first chunk's holds, before there is any text.
    """

    prefix: str
    whole: str
    part: str
    choice: Callable[[str], dict[str, Any]]
    change: Callable[[str], dict[str, Any]]
    logprobs: Callable[[Any, Sequence[Share]], dict[str, Any]]
    opening: dict[str, Any] | None = None


CHAT = Shape(
    prefix="chatcmpl",
    whole="chat.completion",
    part="chat.completion.chunk",
    choice=lambda text: {"message": {"role": "assistant", "content": text}},
    change=lambda text: {"delta": {"content": text} if text else {}},
    logprobs=chat_logprobs,
    opening={"delta": {"role": "assistant", "content": ""}},
)
COMPLETION = Shape(
    prefix="cmpl",
    whole="text_completion",
    part="text_completion",
    choice=lambda text: {"text": text},
    change=lambda text: {"text": text},
    logprobs=text_logprobs,
)


@dataclass(frozen=True)
class Reply:
    """The response to one request, whole or in chunks.

    Attributes:
        shape: the kind of completion.
        model: the model's name.
        tokenizer: the model's.
        echo: text that comes before each answer.
        marks: how a chat's answers are written.
        top: how many of the likeliest tokens to name at each; None for no logprobs.
        id: of this response, the same in every chunk.
        created: seconds since 1970.
    """

    shape: Shape
    model: str
    tokenizer: Any
    echo: str = ""
    top: int | None = None
    marks: Marks = PLAIN
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The body of a response in one piece: all of the text, and how many tokens it took."""
        choices = []
        for index, row in enumerate(rows):
            splitter = Splitter(self.marks)
            parts: dict[str, Any] = {}
            for part, text in [*splitter.feed(row.text), *splitter.end()]:
                parts[part] = parts.get(part, "") + text
            content = self.shape.choice(self.echo + parts.pop(CONTENT, ""))
            reason: str = row.answer.result().finish_reason
            if splitter.calls and (calls := read_calls(splitter.calls)):
                parts[CALLS], reason = calls, CALLS
            elif splitter.calls:
                content = self.shape.choice(row.text)
            if parts:
                content["message"] |= parts
            choices.append(self._choice(index, content, row.shares, reason))
        return self._body(self.shape.whole, choices) | {"usage": usage(rows)}

    def opening(self, index: int) -> Iterator[str]:
        """The events of a stream before there is any text."""
        if self.shape.opening:
            yield event(self._body(self.shape.part, [self._choice(index, self.shape.opening)]))
        if self.echo:
            change = self.shape.change(self.echo)
            yield event(self._body(self.shape.part, [self._choice(index, change)]))

    def chunk(self, index: int, parts: Iterable[tuple[str, str]], row: Row, tokens: slice) -> str:
        """The event of a stream that adds text to an answer.

        Args:
            index: of the answer.
            parts: new pieces, with the names of their parts.
            row: its sequence.
            tokens: that they are made of.
        """
        content: dict[str, Any] = self.shape.change("")
        for part, text in parts:
            if part == CONTENT:
                content |= self.shape.change(text)
            else:
                content["delta"] |= {part: text}
        return event(
            self._body(self.shape.part, [self._choice(index, content, row.shares[tokens])])
        )

    def end(self, index: int, row: Row, splitter: Splitter, tokens: slice) -> Iterator[str]:
        """The last events of an answer: what is left of it, its calls, and why it ended."""
        reason: str = row.answer.result().finish_reason
        parts = list(splitter.end())
        calls = read_calls(splitter.calls)
        if calls is None:
            parts.append((CONTENT, "".join(splitter.calls)))
        if parts:
            yield self.chunk(index, parts, row, slice(0))
        content = self.shape.change("")
        if calls:
            numbered = [{"index": i, **call} for i, call in enumerate(calls)]
            content, reason = {"delta": {CALLS: numbered}}, CALLS
        yield event(
            self._body(self.shape.part, [self._choice(index, content, row.shares[tokens], reason)])
        )

    def counts(self, rows: Sequence[Row]) -> str:
        """The event that ends a stream whose client wants tokens counted."""
        return event(self._body(self.shape.part, []) | {"usage": usage(rows)})

    def _choice(
        self,
        index: int,
        content: dict[str, Any],
        shares: Sequence[Share] = (),
        reason: str | None = None,
    ) -> dict[str, Any]:
        asked = self.top is not None and shares
        logprobs = self.shape.logprobs(self.tokenizer, shares) if asked else None
        return {"index": index, **content, "logprobs": logprobs, "finish_reason": reason}

    def _body(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"{self.shape.prefix}-{self.id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


def event(body: dict[str, Any]) -> str:
    """A server-sent event: https://html.spec.whatwg.org/multipage/server-sent-events.html."""
    return f"data: {json.dumps(body)}\n\n"


def usage(rows: Sequence[Row]) -> dict[str, int]:
    """Tokens of the prompt, of the completions, and of all."""
    answers = [row.answer.result() for row in rows]
    prompt, new = answers[0].prompt_tokens, sum(answer.new_tokens for answer in answers)
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
