"""The records of a run, written as they come."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def write_as_they_come(
    measured: Iterable[Record], out: Path, render: Callable[[Sequence[Record]], str]
) -> list[Record]:
    """Writes all records so far after each one, and prints the table behind the last.

    An interrupt costs the record that is being measured, no other.

    Args:
        measured: the records, each when it is there.
        out: gets a line of JSON for each; the table is beside it, in Markdown.
        render: makes the table.

    Returns:
        All of them.
    """
    records: list[Record] = []
    for record in measured:
        records.append(record)
        out.write_text("".join(f"{json.dumps(each)}\n" for each in records))
        out.with_suffix(".md").write_text(render(records))
    print(render(records))
    return records
