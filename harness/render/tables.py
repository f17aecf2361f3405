"""Records as pandas tables: one row a cell, the matrix of each backend, the families."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import cast
from urllib.parse import quote

import pandas as pd
from packaging.version import InvalidVersion, Version

from harness.records import Record
from harness.render.ranges import in_words
from harness.render.statuses import look

KEY = ["architecture", "release", "backend", "device"]

# What a column of the family table promises, and the checks that must hold for it.
CAPABILITIES = {
    "layer streaming": ("split_and_load", "prefill_parity", "residency"),
    "tied head": ("tied_head",),
    "cache": ("cache_fill", "incremental_decoding"),
}


@dataclass(frozen=True)
class Order:
    """The order of rows and columns: as in matrix/*.toml, then by name.

    Attributes:
        architectures: ids, as in matrix/architectures.toml.
        backends: names, as in matrix/backends.toml.
        original_caches: architecture -> the argument that its own code kept the cache in, for those
            that have a standard cache instead.
        notes: backend -> what to know about how it was measured.
    """

    architectures: Sequence[str] = ()
    backends: Sequence[str] = ()
    original_caches: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)


def cause(record: Record) -> str:
    """Return why a cell is as it is: the listed reason, else the known cause, else the message."""
    said = f"{record.exception}: {record.message}" if record.exception else record.message
    return record.expected or record.explanation or said


def by_version(release: str) -> tuple[int, Version | str]:
    """Return a sort key: releases by version, anything else after them by name."""
    try:
        return (0, Version(release))
    except InvalidVersion:
        return (1, release)


def arrange(values: Iterable[str], order: Sequence[str]) -> list[str]:
    """Return the distinct values, those in `order` first as there, then the rest by name."""
    present = set(values)
    return [v for v in order if v in present] + sorted(present - set(order))


def cells(records: Iterable[Record]) -> pd.DataFrame:
    """Return one row for each cell, indexed from 0; of several records of a cell the newest counts.

    Adds `anchor`, which names the cell on the page, `run_on`, the backend with its device, and
    `cause`, the most telling account of what went wrong.

    Raises:
        ValueError: there are no records.
    """
    frame = pd.DataFrame([asdict(record) | {"cause": cause(record)} for record in records])
    if frame.empty:
        raise ValueError("There are no records to render; run `tox -e matrix` first.")
    frame = frame.sort_values("time", kind="stable").drop_duplicates(KEY, keep="last")
    frame["anchor"] = [
        "-".join(quote(str(part), safe="") for part in row)
        for row in frame[KEY].itertuples(index=False)
    ]
    frame["run_on"] = frame["backend"] + " on " + frame["device"]
    return frame.reset_index(drop=True)


def releases(frame: pd.DataFrame) -> list[str]:
    """Return the releases that have records, oldest first."""
    return sorted(frame["release"].unique(), key=by_version)


def columns(frame: pd.DataFrame, order: Order) -> list[str]:
    """Return each backend-on-device that has records, by device and then as backends.toml lists."""
    pairs = frame[["run_on", "device", "backend"]].drop_duplicates()
    rank = {name: i for i, name in enumerate(arrange(frame["backend"], order.backends))}
    ranked = pairs.assign(rank=pairs["backend"].map(rank)).sort_values(["device", "rank"])
    return list(ranked["run_on"])


def matrix(frame: pd.DataFrame, run_on: str, order: Order) -> pd.DataFrame:
    """Return the positions in `frame` of one backend's cells: rows architectures, columns releases.

    A cell without a record is NA, which is not a status.
    """
    part = frame[frame["run_on"] == run_on].reset_index(names="position")
    table = part.pivot(index="architecture", columns="release", values="position")
    rows = arrange(frame["architecture"], order.architectures)
    return table.reindex(index=rows, columns=releases(part)).astype("Int64")


def grid(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a row for every architecture on every release that a backend-on-device ran on.

    Without a record its status is "no-data": a cell that nobody measured must not go unseen. A
    release that a device never saw (few run on a GPU) is no gap, and has no rows for it.
    """
    names = ["architecture", "release", "run_on"]
    architectures = frame["architecture"].unique()
    every = pd.MultiIndex.from_tuples(
        [
            (architecture, release, run_on)
            for run_on, part in frame.groupby("run_on", sort=False)
            for release in releases(part)
            for architecture in architectures
        ],
        names=names,
    )
    statuses = frame.set_index(names)["status"].reindex(every, fill_value="no-data")
    return statuses.reset_index()


def silent(statuses: pd.Series) -> pd.Series:
    """Return which statuses say nothing about whether a cell works."""
    return statuses.map(lambda status: look(status).tone == "none")


def exceptions(part: pd.DataFrame, order: Sequence[str]) -> list[tuple[str, str, pd.Series]]:
    """Return (architecture, words, releases) for what does not pass in this part of the grid."""
    worse = part[~part["status"].isin(["pass", "unsupported"])]
    found = []
    for key, failing in worse.groupby(["architecture", "status"])["release"]:
        architecture, status = cast("tuple[str, str]", key)
        words = f"{look(status).word} on {in_words(failing, order)}"
        found.append((architecture, words, failing))
    return found


def together(pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return (names, words) with the names of which the same is said joined, in order."""
    said: dict[str, list[str]] = {}
    for name, words in pairs:
        said.setdefault(words, []).append(name)
    return [(", ".join(names), words) for words, names in said.items()]


def verified(part: pd.DataFrame) -> str:
    """Return, as ranges, where all that ran passes, and what does not pass or did not run."""
    order = releases(part)
    part = part[part["status"] != "unsupported"]
    ran = part[~silent(part["status"])]
    if ran.empty:
        return "not measured"
    passing = ran["status"].eq("pass").groupby(ran["release"]).all()
    good = in_words(passing[passing].index, order) or "no release in full"
    worse = together((architecture, words) for architecture, words, _ in exceptions(part, order))
    return "; ".join([good, *(f"{names} {words}" for names, words in worse)])


def capability(part: pd.DataFrame, checks: Sequence[str]) -> str:
    """Return whether these checks held wherever they ran: "yes", "x of y cells", "not measured"."""
    held = []
    for results in part["checks"]:
        statuses = [results[name]["status"] for name in checks if name in results]
        ran = [status for status in statuses if look(status).tone != "none"]
        if ran:
            held.append(all(status == "pass" for status in ran))
    if not held:
        return "not measured"
    return "yes" if all(held) else f"{sum(held)} of {len(held)} cells"


def in_place_of(architectures: Iterable[str], order: Order) -> str:
    """Return what to add where a standard cache takes the place of a family's own, or nothing."""
    caches = {order.original_caches.get(name, "") for name in architectures} - {""}
    own = " and ".join(sorted(caches))
    return f", a standard cache where the original has {own}" if own else ""


def families(frame: pd.DataFrame, order: Order) -> pd.DataFrame:
    """Return the family table, one row for each family in the order of its first architecture."""
    rank = {name: i for i, name in enumerate(arrange(frame["architecture"], order.architectures))}
    ranked = frame.assign(rank=frame["architecture"].map(rank)).sort_values("rank", kind="stable")
    everywhere = grid(frame)
    rows = []
    for family, part in ranked.groupby("family", sort=False):
        row = {"family": family}
        row |= {name: capability(part, checks) for name, checks in CAPABILITIES.items()}
        row["cache"] = f"{row['cache']}{in_place_of(part['architecture'], order)}"
        row["registry class"] = ", ".join(part["family_class"].unique())
        for run_on in columns(frame, order):
            chosen = everywhere["architecture"].isin(part["architecture"])
            row[run_on] = verified(everywhere[chosen & (everywhere["run_on"] == run_on)])
        rows.append(row)
    return pd.DataFrame(rows)


def failures(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what does not pass, one row for each cause, where it shows and on which releases.

    Failures come before known ones.
    """
    part = frame[frame["status"].map(lambda status: look(status).tone in {"bad", "known"})]
    axes = {run_on: releases(ran) for run_on, ran in frame.groupby("run_on")}
    keys = ["run_on", "status", "cause", "architecture"]
    ranges = []
    for key, failing in part.groupby(keys)["release"]:
        run_on, *rest = cast("tuple[str, str, str, str]", key)
        ranges.append((run_on, *rest, in_words(failing, axes[run_on])))
    rows = (
        pd.DataFrame(ranges, columns=[*keys, "releases"])
        .groupby(["run_on", "releases", "status", "cause"])["architecture"]
        .agg(", ".join)
        .reset_index()
        .rename(columns={"architecture": "architectures"})
    )
    tones = rows["status"].map(lambda status: look(status).tone)
    columns = ["architectures", "run_on", "releases", "status", "cause"]
    return rows.loc[tones.sort_values(kind="stable").index, columns]
