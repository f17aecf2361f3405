"""Text from strangers, such as checkpoints and their code, made inert for Markdown."""

from __future__ import annotations

import re

from markupsafe import Markup

# A lone underscore inside a word means nothing to Markdown, so qwen3_moe stays readable.
_SPECIAL = re.compile(r"([\\`*\[\]|~!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")
_NOT_PRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


def escape_markdown(value: object) -> str:
    """`value` as one line that Markdown shows as it stands, also inside a table cell.

    Strings marked as `Markup` pass unchanged: they are ours.
    """
    if isinstance(value, Markup):
        return value
    line = _NOT_PRINTED.sub(" ", str(value)).strip()
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = _SPECIAL.sub(r"\\\1", line)
    # Bare addresses and mentions become links by themselves; a zero-width joint stops that.
    return re.sub(r"(?i)(https?|ftp|www)([:.])", "\\1&#8203;\\2", line).replace("@", "&#64;")
