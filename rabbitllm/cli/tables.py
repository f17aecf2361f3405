"""Rows as a table for people, or as data for programs."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

FORMATS = ("md", "csv", "json")

Row = Mapping[str, Any]


def table(rows: Sequence[Row], style: str = "simple") -> str:
    """The rows as text, a column for each key; columns of figures are aligned to the right.

    Figures with a fraction get two digits of it.
    """
    from tabulate import tabulate

    cells = [list(row.values()) for row in rows]
    return tabulate(cells, list(rows[0]), tablefmt=style, floatfmt=".2f")


def render(rows: Sequence[Row], form: str) -> str:
    """The rows in one of `FORMATS`, without a newline at the end."""
    if form == "json":
        return json.dumps(rows, indent=2)
    if form == "md":
        return table(rows, "github")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")
