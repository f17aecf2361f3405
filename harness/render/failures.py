"""What does not pass, one row for each cause: where, since when, whose fault."""

from __future__ import annotations

from typing import cast

import pandas as pd

from harness.render.ranges import in_words
from harness.render.statuses import look
from harness.render.summary import listed
from harness.render.tables import releases

COLUMNS = ["status", "architectures", "where", "releases", "cause", "side", "link"]


def join(table: pd.DataFrame, name: str, rules: dict[str, str] | None = None) -> pd.DataFrame:
    """Return a table with the rows that differ in one column alone made one, its values listed.

    Args:
        table: any.
        name: the column.
        rules: other columns that may differ -> how pandas aggregates them.
    """
    rules = rules or {}
    same = [str(other) for other in table.columns if other != name and other not in rules]
    groups = table.groupby(same, sort=False, as_index=False)
    joined = groups[[name]].agg(together)
    for other, rule in rules.items():
        joined[other] = groups[[other]].agg(rule)[other]
    return joined


def together(values: pd.Series) -> str:
    """Return the values as "a, b and c"."""
    return listed(list(values))


def failures(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what does not pass, failures before known ones, with the anchor of one such cell.

    Cells that fail for one cause on the same releases share a row.
    """
    part = frame[frame["status"].map(lambda status: look(status).tone in {"bad", "known"})]
    axes = {run_on: releases(ran) for run_on, ran in frame.groupby("run_on", sort=False)}
    part = part.explode("causes").reset_index(drop=True)
    known = pd.json_normalize(part["causes"].tolist()).reindex(columns=["why", "side", "link"])
    part = pd.concat([part, known.fillna("")], axis=1)
    keys = ["status", "why", "side", "link", "run_on", "architecture"]
    found = []
    for key, failing in part.groupby(keys, sort=False):
        status, why, side, link, run_on, architecture = cast("tuple[str, ...]", key)
        words = in_words(failing["release"], axes[run_on])
        anchor = failing["anchor"].iloc[-1]
        found.append((status, why, side, link, run_on, architecture, words, anchor))
    names = ["status", "cause", "side", "link", "where", "architectures", "releases", "anchor"]
    table = pd.DataFrame(found, columns=names)
    for joined in ("where", "architectures"):
        table = join(table, joined, {"anchor": "last"})
    tones = table["status"].map(lambda status: look(status).tone)
    return table.loc[tones.sort_values(kind="stable").index, [*COLUMNS, "anchor"]].reset_index(
        drop=True
    )
