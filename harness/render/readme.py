"""README's family table and what is said below it, which are those of the Markdown report."""

from __future__ import annotations

BEGIN, END = "<!-- families: begin -->", "<!-- families: end -->"
HEADING = "## Families\n\n"


def with_families(text: str, report: str, name: str) -> str:
    """A text with the report's section on families between its two marks.

    Args:
        text: of the document that shows the table.
        report: compatibility.md.
        name: of the document, for the error.

    Raises:
        ValueError: the document does not have each mark once, in order, on a line of its own.
    """
    lines = text.split("\n")
    if lines.count(BEGIN) != 1 or lines.count(END) != 1 or lines.index(BEGIN) > lines.index(END):
        raise ValueError(f"{name} needs one line {BEGIN} and, below it, one line {END}.")
    section = report.split(HEADING, 1)[1].split("\n## ", 1)[0].strip()
    head, tail = lines[: lines.index(BEGIN) + 1], lines[lines.index(END) :]
    return "\n".join([*head, "", section, "", *tail])
