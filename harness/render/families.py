"""The family table, and how many cells have which status."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from harness.render.frames import Rows, columns, grid, releases
from harness.render.ranges import in_words
from harness.render.statuses import LOOKS, look
from harness.render.summary import listed, together, verified

# What a column of the family table promises, and the checks that must hold for it.
CAPABILITIES = {
    "layer streaming": ("split_and_load", "prefill_parity", "residency"),
    "tied head": ("tied_head",),
    "cache": ("cache_fill", "incremental_decoding"),
}


def families(frame: pd.DataFrame, rows: Rows) -> pd.DataFrame:
    """The family table, one row for each family in the order of its first architecture.

    A device is a column whose head names the releases measured; it says for each backend, those
    that agree together, on which of them all passes.
    """
    everywhere = grid(frame)
    table = []
    for family, part in frame.sort_values("place", kind="stable").groupby("family", sort=False):
        row = {"family": str(family), "class": listed(list(part["family_class"].unique()))}
        row |= {name: capability(part, checks) for name, checks in CAPABILITIES.items()}
        row["cache"] = f"{row['cache']}{in_place_of(part['architecture'], rows)}"
        own = everywhere[everywhere["family"] == family]
        for device, ran in frame.groupby("device", sort=False):
            axis = releases(ran)
            verdicts = (
                (run_on.removesuffix(f" on {device}"), verified(own[own["run_on"] == run_on], axis))
                for run_on in columns(ran)
            )
            head = f"on {device}, {in_words(axis, axis)}"
            said = together(verdicts).items()
            row[head] = ". ".join(f"{listed(names)}: {words}" for words, names in said)
        table.append(row)
    return pd.DataFrame(table)


def capability(part: pd.DataFrame, checks: Sequence[str]) -> str:
    """Whether these checks held wherever they ran: "yes", "x of y cells", "not measured"."""
    held = []
    for results in part["checks"]:
        statuses = [results[name]["status"] for name in checks if name in results]
        ran = [status for status in statuses if look(status).tone != "none"]
        if ran:
            held.append(all(status == "pass" for status in ran))
    if not held:
        return "not measured"
    return "yes" if all(held) else f"{sum(held)} of {len(held)} cells"


def in_place_of(architectures: Iterable[str], rows: Rows) -> str:
    """What to add where a standard cache takes the place of a family's own, or nothing."""
    caches = {rows.original_caches.get(name, "") for name in architectures} - {""}
    return f", standard in place of {listed(sorted(caches))}" if caches else ""


def counts(frame: pd.DataFrame, by: str) -> pd.DataFrame:
    """How many cells have which status, a row for each value of column `by`.

    Releases come newest first, anything else as in the frame. Cells without a record count.
    """
    everywhere = grid(frame)
    table = pd.crosstab(everywhere[by], everywhere["status"])
    order = releases(everywhere)[::-1] if by == "release" else everywhere[by].unique()
    known = [status for status in LOOKS if status in table.columns]
    other = sorted(set(table.columns) - set(known))
    table = table.reindex(index=order, columns=[*known, *other])
    return table.rename(columns=lambda status: look(status).word).reset_index(names=by)
