"""The table of quantised checkpoints: on which releases stock reads them by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from harness.records import Record
from harness.render.frames import arrange, by_version
from harness.render.ranges import span
from harness.render.text import shorten, visible

CHECK = "published_format"
NOT_QUANTISED = "the checkpoint is not quantised"
READ = {"pass": "to the same values", "stock-wrong": "to other values"}
"""What a check that ran says of stock."""
CHARACTERS = 90
"""Of what stock says, which goes on with how to install it."""
COLUMNS = ["checkpoint", "stock reads it by itself", "only here", "for want of"]


def formats(records: Iterable[Record], order: Sequence[str] = ()) -> pd.DataFrame:
    """A line for each architecture whose checkpoint is quantised.

    Args:
        records: of models.
        order: of the architectures.
    """
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for record in sorted(records, key=lambda record: record.time):
        result = record.checks.get(CHECK)
        if result and result.message != NOT_QUANTISED:
            own = found.setdefault(record.architecture, {})
            own[record.release] = result.status, result.message
    lines = [visible(line(name, found[name])) for name in arrange(found, order)]
    return pd.DataFrame(lines, columns=COLUMNS)


def line(architecture: str, found: dict[str, tuple[str, str]]) -> dict[str, str]:
    """The line of an architecture: release -> the check's status and message."""
    axis = sorted(found, key=by_version)
    chosen = {
        status: [release for release in axis if found[release][0] == status]
        for status, _ in found.values()
    }
    read = [
        f"{span(releases, axis)}, {READ[status]}" if status != "pass" else span(releases, axis)
        for status, releases in chosen.items()
        if status in READ
    ]
    alone = [release for release in axis if found[release][0] not in READ]
    wants = dict.fromkeys(_reason(found[release][1]) for release in alone)
    values = (
        architecture,
        "; ".join(read) or "never",
        span(alone, axis) if alone else "",
        "; ".join(wants),
    )
    return dict(zip(COLUMNS, values, strict=True))


def _reason(message: str) -> str:
    """What stock said, which stands in parentheses behind what that means."""
    return shorten(message.partition("(")[2].removesuffix(")") or message, CHARACTERS)
