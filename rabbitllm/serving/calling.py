"""The grammar of an answer in which calls keep to their functions' schemas, as llguidance reads it.

Text is free until the mark before a call; behind it one of the functions is called, its arguments
as its schema has them. https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md
"""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from rabbitllm.serving.parts import Written

ANY = {"type": "object"}
"""The schema of arguments that nothing is said of."""


def grammar_of_calls(
    written: Written,
    functions: Iterable[Mapping[str, Any]],
    form: Mapping[str, Any],
    tokens: Mapping[str, int],
    ends: Collection[int],
) -> str:
    """The grammar, in llguidance's variant of Lark.

    Args:
        written: how the model writes calls.
        functions: "name", "parameters" and "strict" of each that may be called.
        form: how JSON is written, see `rabbitllm.serving.grammar.FORM`.
        tokens: those that were added to the vocabulary: text -> id. One that looks like a tag is no
            text to llguidance, so each is named by its id as well.
        ends: ids that end an answer.
    """
    others = sorted(set(tokens.values()) - {tokens.get(written.before), *ends})
    parts = ["call", *(["other"] if others else [])]
    calls = f"one ({_text(written.between)} one)*" if written.between else "one"
    begun = f" | TEXT {_token(tokens[written.before])}" if written.before in tokens else ""
    closed = [_text(written.behind)] if written.behind else []
    closed += [_token(tokens[written.behind])] if written.behind in tokens else []
    lines = [
        "%llguidance {}",
        f"start: ({' | '.join(parts)})* TEXT",
        f"call: begun {_text(written.opening)} {calls} {_text(written.closing)} "
        + (f"({' | '.join(closed)})" if closed else ""),
        f"begun: mark{begun}",
        f"mark[lazy]: TEXT {_text(written.before)}",
        f"one: {' | '.join(_one(function, form) for function in functions)}",
        *([f"other: TEXT {_token(*others)}"] if others else []),
        r"TEXT: /(.|\n)*/",
    ]
    return "\n".join(lines)


def _one(function: Mapping[str, Any], form: Mapping[str, Any]) -> str:
    """A call of a function."""
    schema = function["parameters"] if function["strict"] and function["parameters"] else ANY
    name = json.dumps(function["name"], ensure_ascii=False)
    head, tail = _text('{"name": ' + name + ', "arguments": '), _text("}")
    return f"{head} %json {json.dumps({**schema, 'x-guidance': form})} {tail}"


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _token(*ids: int) -> str:
    return f"<[{','.join(map(str, ids))}]>"
