"""Passes that say only that a streamed model does what a wrong stock does."""

from __future__ import annotations

import pandas as pd

from harness.records import OF_STOCK

SAME = ["architecture", "release", "device"]
"""Columns that are equal in cells that differ in the backend alone."""


def without_hearsay(frame: pd.DataFrame) -> pd.DataFrame:
    """The cells, where none passes for agreeing with a stock whose answers are known to be wrong.

    Golden values are those of float32, so a backend in half precision is compared with stock alone.
    Where every backend that is held to golden values misses them, or fails at them, on the same
    architecture, release and device, the model's code is wrong and not a backend: the cells that
    pass without golden values get that status and its causes. Where one of them is right, or passes
    in a record from before there were golden values, they keep theirs.

    Args:
        frame: one row for each cell, with its `causes`.
    """
    golden = frame["checks"].map(lambda checks: checks.get("golden", {}).get("status", ""))
    same = [frame[name] for name in SAME]
    passes = frame["status"].eq("pass")
    right = (golden.eq("pass") | (golden.eq("") & passes)).groupby(same).transform("any")
    wrong = golden.isin(OF_STOCK) & frame["status"].isin(OF_STOCK)
    witness = frame.index.to_series().where(wrong).groupby(same).transform("min")
    hearsay = passes & golden.eq("not-run") & ~right & witness.notna()
    frame, told = frame.copy(), witness[hearsay].astype(int)
    for column in ("status", "causes"):
        frame.loc[hearsay, column] = told.map(frame[column])
    frame.loc[hearsay, "message"] = (
        "Agrees with stock, which is not held to golden values in "
        + frame["dtype"]
        + "; with "
        + told.map(frame["attention"])
        + " it is, and that fails."
    )
    return frame
