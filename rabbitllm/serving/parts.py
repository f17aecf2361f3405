"""The parts of a chat answer: what it thinks, what it says, and the functions that it calls."""

import json
import uuid
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

REASONING, CONTENT, CALLS = "reasoning_content", "content", "tool_calls"
THINKING = ("<think>", "</think>")


class Written(NamedTuple):
    """How a family writes calls, each of which is JSON: an object with "name" and "arguments".

    Attributes:
        before: the mark that begins one call, or several.
        behind: the mark that ends them; empty if the text's end does.
        opening: between the first mark and a call.
        between: two calls of the same marks; empty if each has its own.
        closing: between a call and the last mark.
    """

    before: str
    behind: str
    opening: str
    between: str
    closing: str


WRITTEN = (
    Written("<tool_call>", "</tool_call>", "\n", "", "\n"),
    Written("[TOOL_CALLS]", "", "[", ", ", "]"),
)
"""Qwen's and Hermes' way, then Mistral's."""


@dataclass(frozen=True)
class Marks:
    """How a model writes what is not content, as its chat template shows.

    Attributes:
        thinking: before and behind what it thinks; none if it does not.
        begun: the prompt ends within its thoughts.
        calls: before and behind its calls; none if it was offered no functions.
    """

    thinking: tuple[str, str] | None = None
    begun: bool = False
    calls: tuple[str, str] | None = None


PLAIN = Marks()
"""Of a model that only says something."""


def marks_of(template: str, prompt: str, offered: bool, unseen: Collection[str]) -> Marks:
    """Those of an answer.

    Args:
        template: the model's chat template.
        prompt: what it has made of the conversation.
        offered: the model may call functions.
        unseen: special tokens, which an answer's text leaves out.
    """
    begun = prompt.rstrip().endswith(THINKING[0])
    shown = THINKING[1] in template and THINKING[1] not in unseen
    written = written_calls(template, unseen) if offered else None
    calls = (written.before, written.behind) if written else None
    return Marks(THINKING if shown else None, begun and shown, calls)


def written_calls(template: str, unseen: Collection[str]) -> Written | None:
    """How the model writes calls; None if the template shows nothing that is known."""
    known = (each for each in WRITTEN if each.before in template and each.before not in unseen)
    return next(known, None)


class Splitter:
    """Splits an answer's text into its parts, as it comes.

    Args:
        marks: how the model writes them.

    Attributes:
        calls: text of the calls so far.
    """

    def __init__(self, marks: Marks) -> None:
        self.calls: list[str] = []
        self._marks = marks
        self._part = REASONING if marks.begun else CONTENT
        self._held = ""
        self._begun = False  # something of this part is out

    def feed(self, text: str) -> Iterator[tuple[str, str]]:
        """The new pieces of parts, each with the part's name; calls come at the end."""
        self._held += text
        while True:
            mark, following = self._next_mark()
            found = self._held.find(mark) if mark else -1
            if found < 0:
                break
            yield from self._out(self._held[:found])
            self._held = self._held[found + len(mark) :]
            self._part, self._begun = following, False
            if following == CALLS:
                self.calls.append("")
        keep = _overlap(self._held, mark) if mark else 0
        ready, self._held = (
            self._held[: len(self._held) - keep],
            self._held[len(self._held) - keep :],
        )
        yield from self._out(ready)

    def end(self) -> Iterator[tuple[str, str]]:
        """What was kept back."""
        held, self._held = self._held, ""
        yield from self._out(held)

    def _next_mark(self) -> tuple[str, str]:
        """The mark that ends this part, and the part behind it."""
        thinking, calls = self._marks.thinking, self._marks.calls
        if self._part == REASONING and thinking:
            return thinking[1], CONTENT
        if self._part == CALLS and calls:
            return calls[1], CONTENT
        at_first = not self._begun and not self.calls and self._part == CONTENT
        if thinking and at_first and not self._marks.begun:
            start = self._held.lstrip()
            if start.startswith(thinking[0]) or thinking[0].startswith(start):
                return thinking[0], REASONING
        return (calls[0], CALLS) if calls else ("", CONTENT)

    def _out(self, text: str) -> Iterator[tuple[str, str]]:
        if self._part == CALLS:
            self.calls[-1] += text
            return
        if not self._begun and self._marks != PLAIN:
            text = text.lstrip()
        if text:
            self._begun = True
            yield self._part, text


def read_calls(texts: list[str]) -> list[dict[str, Any]] | None:
    """Calls as OpenAI's clients take them; None if one of the texts is none."""
    try:
        return [_call(each) for text in texts for each in _listed(json.loads(text))]
    except (ValueError, LookupError, AttributeError, TypeError):
        return None


def _listed(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def _call(written: Any) -> dict[str, Any]:
    arguments = written.get("arguments", written.get("parameters", {}))
    function = {"name": str(written["name"]), "arguments": json.dumps(arguments)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of the text that the mark begins with."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if mark.startswith(text[-n:])), 0)
