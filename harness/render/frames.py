"""Records as pandas tables: one row a cell, and the matrix of each backend."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise, takewhile
from typing import cast
from urllib.parse import quote

import pandas as pd
from packaging.version import InvalidVersion, Version

from harness.judging.changes import side_of
from harness.judging.expected_failures import Expected, entries_for, load_expected
from harness.matrix import MATRIX, Example, Key, load_matrix
from harness.records import FAILED, Record
from harness.render.statuses import look
from harness.render.text import visible
from harness.render.unheld import without_hearsay
from harness.tables import read_rows

KEY = ["architecture", "release", "backend", "device"]


@dataclass(frozen=True)
class Rows:
    """What matrix/*.toml says beside the records; what it does not name comes last, by name.

    Attributes:
        architectures: ids in their order.
        backends: names in their order.
        original_caches: architecture -> the argument that its own code kept the cache in, for those
            that have a standard cache instead.
        notes: backend -> what to know about how it was measured.
        uncompiled: backend -> the devices on which it was measured without torch.compile.
        expected: the failures that are known.
        model_types: architecture -> `model_type` in its config.json.
        examples: architecture -> repositories on the hub that are like it.
        real: architectures whose weights are a published model's; those of others are tiny and
            random.
    """

    architectures: Sequence[str] = ()
    backends: Sequence[str] = ()
    original_caches: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[str, str] = field(default_factory=dict)
    uncompiled: Mapping[str, Sequence[str]] = field(default_factory=dict)
    expected: Sequence[Expected] = ()
    model_types: Mapping[str, str] = field(default_factory=dict)
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)
    real: Sequence[str] = ()

    def attention(self, backend: str, device: str) -> str:
        """What a backend on a device is called: uncompiled, it is not what users get."""
        uncompiled = device in self.uncompiled.get(backend, ())
        return f"uncompiled {backend}" if uncompiled else backend


def load_rows() -> Rows:
    """What matrix/*.toml says.

    Raises:
        TableError: a file is not as its dataclass says.
    """
    matrix = load_matrix(MATRIX)
    return Rows(
        architectures=[row.id for row in matrix.architectures],
        backends=[row.id for row in matrix.backends],
        original_caches={row.id: row.original_cache for row in matrix.architectures},
        notes={row.id: row.notes for row in matrix.backends if row.notes},
        uncompiled={row.id: row.uncompiled for row in matrix.backends},
        expected=load_expected(MATRIX),
        model_types={row.id: row.model_type for row in matrix.architectures},
        examples={
            row.id: row.checkpoints
            for row in read_rows(Example, MATRIX / "examples.toml", "example")
        },
        real=[row.id for row in matrix.architectures if row.gguf],
    )


def causes(record: Record, expected: Sequence[Expected]) -> list[dict[str, str]]:
    """Why a cell does not pass, as far as is known: cause, whose fault ("side"), link."""
    if record.status == "pass":
        return []
    if record.status not in {*FAILED, "xfail"}:
        return [{"why": record.message, "side": "", "link": ""}]
    found = entries_for(record, expected)
    if found:
        return [{"why": entry.why, "side": entry.side, "link": entry.link} for entry in found]
    said = f"{record.exception}: {record.message}" if record.exception else record.message
    why = record.expected or record.explanation or said
    return [{"why": why, "side": side_of(record, ()), "link": ""}]


def by_version(release: str) -> tuple[int, Version | str]:
    """A sort key: releases by version, anything else after them by name."""
    try:
        return (0, Version(release))
    except InvalidVersion:
        return (1, release)


def arrange(values: Iterable[str], order: Sequence[str]) -> list[str]:
    """The distinct values, those in `order` first as there, then the rest by name."""
    present = set(values)
    return [v for v in order if v in present] + sorted(present - set(order))


def cells(
    records: Iterable[Record], rows: Rows | None = None, between: Iterable[Record] = ()
) -> pd.DataFrame:
    """One row for each cell, indexed from 0.

    The order is by device, backend, release, architecture. Adds `anchor`, which names the cell on
    the page, `attention`, what readers are told of the backend, `run_on`, that with the device,
    `place`, that of its architecture, `causes`, `real`, see `Rows`, and `old`: what about the
    record is not of the newest code. Unseen characters are spelled out, see `harness.render.text`,
    and what passes only as a wrong stock does has that stock's status, see `harness.render.unheld`.
    `since` and `until` say how far its status reaches, see `reaching`.

    Args:
        records: judged; of several of a cell the newest counts.
        rows: what matrix/*.toml says.
        between: judged, of releases between two in which a cell has different statuses.

    Raises:
        ValueError: there are no records.
    """
    rows = rows or Rows()
    frame = pd.DataFrame(
        [visible(fields(record) | {"causes": causes(record, rows.expected)}) for record in records]
    )
    if frame.empty:
        raise ValueError("There are no records to render; run `tox -e matrix` first.")
    frame = frame.sort_values("time", kind="stable").drop_duplicates(KEY, keep="last")
    frame["old"] = old(frame)
    frame["anchor"] = [
        f"{architecture}@{release}/{backend}/{device}"
        for architecture, release, backend, device in frame[KEY].map(quoted).to_numpy()
    ]
    frame["attention"] = list(map(rows.attention, frame["backend"], frame["device"]))
    frame["run_on"] = frame["attention"] + " on " + frame["device"]
    ranks = {
        "device": rank(frame["device"], ("cpu", "cuda")),
        "backend": rank(frame["backend"], rows.backends),
        "release": {name: place for place, name in enumerate(releases(frame))},
        "architecture": rank(frame["architecture"], rows.architectures),
    }
    frame["place"] = frame["architecture"].map(ranks["architecture"])
    frame["real"] = frame["architecture"].isin(rows.real)
    frame = frame.sort_values(list(ranks), key=lambda part: part.map(ranks[str(part.name)]))
    return reaching(without_hearsay(frame.reset_index(drop=True)), between)


def reaching(frame: pd.DataFrame, between: Iterable[Record]) -> pd.DataFrame:
    """The cells with `since` and `until`: how far a cell's status reaches past its release.

    It reaches as far towards a neighbour of another status as releases between the two have it.
    """
    statuses: dict[Key, dict[str, str]] = {}
    for record in between:
        statuses.setdefault(record.key, {})[record.release] = record.status
    found = frame.assign(since=frame["release"], until=frame["release"])
    for key, part in frame.groupby(["architecture", "backend", "device"], sort=False):
        known = statuses.get(cast("Key", key), {})
        order = sorted(known, key=by_version)
        for older, newer in pairwise(part.index):
            before, after = part.loc[older], part.loc[newer]
            if before["status"] == after["status"]:
                continue
            low, high = by_version(before["release"]), by_version(after["release"])
            inside = [release for release in order if low < by_version(release) < high]
            found.loc[older, "until"] = reached(before, inside, known)
            found.loc[newer, "since"] = reached(after, inside[::-1], known)
    return found


def reached(cell: pd.Series, ahead: Iterable[str], statuses: Mapping[str, str]) -> str:
    """The last of the releases ahead up to which a cell keeps its status; else its own release."""
    kept = takewhile(lambda release: statuses[release] == cell["status"], ahead)
    return [str(cell["release"]), *kept][-1]


def reach(part: pd.DataFrame) -> dict[str, tuple[str, str]]:
    """Release -> `since` and `until` of its cells; its own name where these do not agree.

    Args:
        part: any cells of a grid, which are spoken of together.
    """
    found = {}
    for release, at in part.groupby("release", sort=False):
        name = str(release)
        edges = [set(at[column]) - {name} for column in ("since", "until")]
        first, last = (edge.pop() if len(edge) == 1 else name for edge in edges)
        found[name] = first, last
    return found


def fields(record: Record) -> dict[str, object]:
    """A record's fields; `asdict` would copy every figure, seconds for a whole matrix."""
    return vars(record) | {"checks": {name: vars(found) for name, found in record.checks.items()}}


def quoted(part: str) -> str:
    """A part of a cell's name as an address can hold it."""
    return quote(part, safe="")


def rank(values: Iterable[str], order: Sequence[str]) -> dict[str, int]:
    """Value -> its place, see `arrange`."""
    return {name: place for place, name in enumerate(arrange(values, order))}


def old(frame: pd.DataFrame) -> pd.Series:
    """What about each record is older than in the newest record: the engine, the checks.

    The engine is one for all; the checks of a cell depend on its architecture and backend. The
    frame is sorted by time.
    """
    engine = frame["engine_hash"].mask(frame["engine_hash"] == "")
    checks = frame["check_hash"].mask(frame["check_hash"] == "")
    newest = checks.groupby([frame["architecture"], frame["backend"]]).transform("last")
    older = {
        "engine": engine.notna() & (engine != engine.ffill().iloc[-1]),
        "checks": checks.notna() & (checks != newest),
    }
    words = {
        (False, False): "",
        (True, False): "measured with an older engine",
        (False, True): "measured with older checks",
        (True, True): "measured with an older engine and older checks",
    }
    pairs = zip(older["engine"], older["checks"], strict=True)
    return pd.Series([words[bool(one), bool(other)] for one, other in pairs], frame.index)


def releases(frame: pd.DataFrame) -> list[str]:
    """The releases that have records, oldest first."""
    return sorted(frame["release"].unique(), key=by_version)


def columns(frame: pd.DataFrame) -> list[str]:
    """Each backend-on-device that has records, in the order of the cells."""
    return list(frame["run_on"].unique())


def matrix(frame: pd.DataFrame, run_on: str) -> pd.DataFrame:
    """The positions in `frame` of one backend's cells: rows architectures, columns releases.

    A cell without a record is NA, which is not a status.
    """
    part = frame[frame["run_on"] == run_on].reset_index(names="position")
    table = part.pivot(index="architecture", columns="release", values="position")
    names = frame.sort_values("place")["architecture"].unique()
    return table.reindex(index=names, columns=releases(part)).astype("Int64")


def grid(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for every architecture on every release that a backend-on-device ran on.

    Without a record its status is "no-data": a cell that nobody measured must not go unseen. A
    release that a device never saw (few run on a GPU) is no gap, and has no rows for it.
    """
    names = ["architecture", "release", "run_on"]
    distinct = frame.sort_values("place").drop_duplicates("architecture")
    families = distinct.set_index("architecture")["family"]
    every = pd.MultiIndex.from_tuples(
        [
            (architecture, release, run_on)
            for run_on, part in frame.groupby("run_on", sort=False)
            for release in releases(part)
            for architecture in families.index
        ],
        names=names,
    )
    known = frame.set_index(names)[["status", "since", "until"]]
    table = known.reindex(every).reset_index()
    table = table.fillna(
        {"status": "no-data", **dict.fromkeys(("since", "until"), table["release"])}
    )
    device = frame.drop_duplicates("run_on").set_index("run_on")["device"]
    return table.assign(
        family=table["architecture"].map(families),
        device=table["run_on"].map(device),
        tone=table["status"].map(lambda status: look(status).tone),
    )
