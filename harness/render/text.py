"""Text from records, made safe to show: what cannot be seen, or bends what can, is spelled out."""

from __future__ import annotations

import re
from typing import Any

# Controls except tab and newline, lone surrogates, and what hides text or turns its direction.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff]"
)


def visible(value: Any) -> Any:
    r"""Return the value with every unseen character in its strings written out, as `\u202e`.

    Tables and lists keep their shape; a carriage return before a newline goes.
    """
    if isinstance(value, str):
        if value.isprintable():  # nearly all are
            return value
        return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", value.replace("\r\n", "\n"))
    if isinstance(value, dict):
        return {visible(key): visible(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [visible(entry) for entry in value]
    return value


def shorten(value: object, length: int = 600) -> str:
    """The first line of `value`, cut to `length` characters: more than a cause in matrix/ has."""
    first = (str(value).strip().splitlines() or [""])[0]
    return first if len(first) <= length else first[: length - 1] + "…"


def clip(value: str, length: int = 6000) -> str:
    """The end of a long text, where a traceback says what happened, and how much is gone."""
    gone = len(value) - length
    return value if gone <= 0 else f"[{gone:,} characters left out]\n{value[-length:]}"
