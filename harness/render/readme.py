"""The parts of README that come from records, each between two marks of its own."""

from __future__ import annotations

HEADING = "## Families\n\n"


def with_part(text: str, part: str, content: str, name: str) -> str:
    """A text with new content between the marks of one of its parts.

    Args:
        text: of the document.
        part: what the marks name: `<!-- families: begin -->` and `<!-- families: end -->`.
        content: what goes between them.
        name: of the document, for the error.

    Raises:
        ValueError: the document does not have each mark once, in order, on a line of its own.
    """
    begin, end = marks(part)
    lines = text.split("\n")
    if lines.count(begin) != 1 or lines.count(end) != 1 or lines.index(begin) > lines.index(end):
        raise ValueError(f"{name} needs one line {begin} and, below it, one line {end}.")
    head, tail = lines[: lines.index(begin) + 1], lines[lines.index(end) :]
    return "\n".join([*head, "", content.strip(), "", *tail])


def marks(part: str) -> tuple[str, str]:
    """The lines before and behind a part."""
    return f"<!-- {part}: begin -->", f"<!-- {part}: end -->"


def families_of(report: str) -> str:
    """The section on families of the Markdown report: the table and what is said below it."""
    return report.split(HEADING, 1)[1].split("\n## ", 1)[0]
