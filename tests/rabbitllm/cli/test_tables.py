from __future__ import annotations

import csv
import io
import json

from rabbitllm.cli.tables import render, table

ROWS = [
    {"name": "a", "tokens/s": "12.30", "GB/s": "-"},
    {"name": "b", "tokens/s": "3.89", "GB/s": "1"},
]


def test_figures_keep_their_digits_and_line_up() -> None:
    lines = table(ROWS).splitlines()
    assert lines[2].split() == ["a", "12.30", "-"]
    assert lines[2].index("12.30") + 5 == lines[3].index("3.89") + 4


def test_each_format_holds_every_row() -> None:
    assert render(ROWS, "md").splitlines()[2].replace(" ", "") == "|a|12.30|-|"
    assert list(csv.DictReader(io.StringIO(render(ROWS, "csv")))) == ROWS
    assert json.loads(render(ROWS, "json")) == ROWS
