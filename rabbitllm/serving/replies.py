"""What clients get back, in the shapes of OpenAI's two kinds of completion."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rabbitllm.text import Answer

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
        choice: text -> what a response's only choice holds.
        change: text -> what a chunk's only choice holds.
        opening: what the first chunk's holds, before there is any text.
    """

    prefix: str
    whole: str
    part: str
    choice: Callable[[str], dict[str, Any]]
    change: Callable[[str], dict[str, Any]]
    opening: dict[str, Any] | None = None


CHAT = Shape(
    prefix="chatcmpl",
    whole="chat.completion",
    part="chat.completion.chunk",
    choice=lambda text: {"message": {"role": "assistant", "content": text}},
    change=lambda text: {"delta": {"content": text} if text else {}},
    opening={"delta": {"role": "assistant", "content": ""}},
)
COMPLETION = Shape(
    prefix="cmpl",
    whole="text_completion",
    part="text_completion",
    choice=lambda text: {"text": text},
    change=lambda text: {"text": text},
)


@dataclass(frozen=True)
class Reply:
    """The response to one request, whole or in chunks.

    Attributes:
        shape: the kind of completion.
        model: the model's name.
        id: of this response, the same in every chunk.
        created: seconds since 1970.
    """

    shape: Shape
    model: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, answer: Answer) -> dict[str, Any]:
        """The body of a response in one piece: all of the text, and how many tokens it took."""
        choices = [_choice(self.shape.choice(text), answer.finish_reason)]
        return self._body(self.shape.whole, choices) | {"usage": usage(answer)}

    def chunk(self, content: dict[str, Any], reason: str | None = None) -> str:
        """The event of a stream that adds `content`; `reason` says why the text has ended."""
        return event(self._body(self.shape.part, [_choice(content, reason)]))

    def counts(self, answer: Answer) -> str:
        """The event that ends a stream whose client wants tokens counted."""
        return event(self._body(self.shape.part, []) | {"usage": usage(answer)})

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


def usage(answer: Answer) -> dict[str, int]:
    """Tokens of the prompt, of the completion, and of both."""
    return {
        "prompt_tokens": answer.prompt_tokens,
        "completion_tokens": answer.new_tokens,
        "total_tokens": answer.prompt_tokens + answer.new_tokens,
    }


def _choice(content: dict[str, Any], reason: str | None) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": reason}
