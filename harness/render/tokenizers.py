"""The table of tokenizers: what each release makes of the files that authors publish."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from harness.judging.expected_failures import Expected
from harness.judging.tokenizers import TOKENIZER
from harness.records import Record
from harness.render.failures import join
from harness.render.frames import by_version, causes
from harness.render.ranges import span
from harness.render.statuses import caption
from harness.render.summary import row_caption
from harness.render.text import visible

CAUSE = ("why", "side", "link")
COLUMNS = ["tokenizer", "architectures", "releases", "cause", "side", "link"]


def tokenizers(records: Iterable[Record], expected: Sequence[Expected]) -> pd.DataFrame:
    """A line for each tokenizer, or for each cause where there are several.

    Args:
        records: judged, of tokenizers alone, see `harness.judging.tokenizers`.
        expected: the failures that are known.
    """
    by_architecture: dict[str, list[Record]] = {}
    for record in records:
        by_architecture.setdefault(record.architecture, []).append(record)
    lines = []
    for architecture, own in by_architecture.items():
        own.sort(key=lambda record: by_version(record.release))
        axis = [record.release for record in own]
        told: dict[tuple[str, ...], list[Record]] = {}
        for record in own:
            for cause in causes(record, expected):
                told.setdefault(tuple(cause[key] for key in CAUSE), []).append(record)
        whole = row_caption([record.status for record in own], axis)
        for words, chosen in (told or {("", "", ""): own}).items():
            where = f"{caption(chosen[-1].status)} {span([r.release for r in chosen], axis)}"
            said = whole if len(told) < 2 else where
            values = (name(own), architecture, said, *words)
            lines.append(visible(dict(zip(COLUMNS, values, strict=True))))
    table = pd.DataFrame(lines, columns=COLUMNS)
    return table if table.empty else join(table, "architectures")[COLUMNS]


def name(own: Sequence[Record]) -> str:
    """What the golden tokenizer is called; a check that raised does not say."""
    named = (record.checks[TOKENIZER].figures.get("tokenizer") for record in own)
    return next((str(found) for found in named if found), own[0].architecture)
