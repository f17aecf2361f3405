"""What does not pass, one row for each cause: where, since when, whose fault."""

from __future__ import annotations

from typing import cast

import pandas as pd

from harness.render.frames import reach, releases
from harness.render.ranges import in_words
from harness.render.statuses import look
from harness.render.summary import listed

COLUMNS = ["status", "architectures", "where", "releases", "cause", "side", "link"]


def where(table: pd.DataFrame, rules: dict[str, str] | None = None) -> pd.DataFrame:
    """A table with `backend` and `device` as one column, "eager and sdpa on cpu".

    Rows that differ in the backend, the device or the architectures alone become one, see `join`.
    """
    table = join(table, "backend", rules)
    table = table.assign(where=table["backend"] + " on " + table["device"])
    return join(
        join(table.drop(columns=["backend", "device"]), "where", rules), "architectures", rules
    )


def join(table: pd.DataFrame, name: str, rules: dict[str, str] | None = None) -> pd.DataFrame:
    """A table with the rows that differ in one column alone made one, its values listed.

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
    """The values as "a, b and c"."""
    return listed(list(values))


def failures(frame: pd.DataFrame) -> pd.DataFrame:
    """What does not pass, failures before known ones, with the anchor of one such cell.

    Cells that fail for one cause on the same releases share a row.
    """
    part = frame[frame["status"].map(lambda status: look(status).tone in {"bad", "known"})]
    axes = {run_on: releases(ran) for run_on, ran in frame.groupby("run_on", sort=False)}
    part = part.explode("causes").reset_index(drop=True)
    known = pd.json_normalize(part["causes"].tolist()).reindex(columns=["why", "side", "link"])
    part = pd.concat([part, known.fillna("")], axis=1)
    keys = ["status", "why", "side", "link", "attention", "device", "architecture"]
    found = []
    for key, failing in part.groupby(keys, sort=False):
        *_, attention, device, _ = fields = cast("tuple[str, ...]", key)
        words = in_words(failing["release"], axes[f"{attention} on {device}"], reach(failing))
        found.append((*fields, words, failing["anchor"].iloc[-1]))
    names = ["status", "cause", "side", "link", "backend", "device", "architectures"]
    table = pd.DataFrame(found, columns=[*names, "releases", "anchor"])
    table = where(table, {"anchor": "last"})
    tones = table["status"].map(lambda status: look(status).tone)
    return table.loc[tones.sort_values(kind="stable").index, [*COLUMNS, "anchor"]].reset_index(
        drop=True
    )
