"""Links and tables of Markdown, of text from records that is made inert."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from markupsafe import Markup

from rabbitllm.releases.markdown import escape_markdown


def markdown_link(text: object, address: str) -> Markup:
    """A link to an https address; what is no such address is shown as text."""
    if not address.startswith("https://"):
        return Markup(escape_markdown(address or text))
    return Markup(f"[{escape_markdown(text)}]({quote(address, safe='/:?=&%#-._~+')})")


def markdown_table(rows: Iterable[Iterable[object]], header: Iterable[object]) -> Markup:
    """A Markdown table of these rows, every cell escaped."""
    head = list(header)
    lines: list[Iterable[object]] = [head, ["---"] * len(head), *rows]
    escaped = (" | ".join(escape_markdown(cell) for cell in line) for line in lines)
    return Markup("\n".join(f"| {line} |" for line in escaped))
