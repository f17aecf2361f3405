"""The family table, and how many cells have which status."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from harness.render.frames import Rows, columns, grid, reach, releases
from harness.render.ranges import brief, in_words
from harness.render.statuses import LOOKS, look
from harness.render.summary import UNKNOWN, listed, together, verified

# What a column of the family table promises, and the checks that must hold for it.
CAPABILITIES = {
    "layer streaming": ("split_and_load", "prefill_parity", "residency"),
    "tied head": ("tied_head",),
    "cache": ("cache_fill", "incremental_decoding"),
}


@dataclass(frozen=True)
class Support:
    """How far a family works with one backend on its device.

    Attributes:
        run_on: the backend and the device, as "sdpa on cpu".
        tone: of the newest release: "good" if every architecture passes there, "known" if some do.
        glyph: for all releases: a tick if every architecture passes on some of them.
        where: which those are in short, or how many architectures pass on every release.
        exceptions: what does not pass: architectures, and ranges such as "△ 5.21.0+".
        words: the same as a sentence.
    """

    run_on: str
    tone: str
    glyph: str
    where: str
    exceptions: tuple[tuple[str, tuple[str, ...]], ...]
    words: str

    def __str__(self) -> str:
        told = [f"{names} {', '.join(ranges)}".strip() for names, ranges in self.exceptions]
        return "; ".join([f"{self.glyph} {self.where}", *told])


@dataclass(frozen=True)
class Family:
    """One row of the table: `capabilities` are those that do not hold everywhere."""

    name: str
    class_name: str
    capabilities: dict[str, str]
    support: tuple[Support, ...]


@dataclass(frozen=True)
class Families:
    """The table.

    Attributes:
        rows: in the order of their first architectures.
        devices: device -> the releases measured there, in words, and how many backends were.
        notes: sentences on what holds in every row, and how to read it.
    """

    rows: tuple[Family, ...]
    devices: dict[str, tuple[str, int]]
    notes: tuple[str, ...]

    def lines(self) -> list[list[str]]:
        """The table as text, its head first."""
        first = self.rows[0]
        head = ["family", "class", *first.capabilities, *(each.run_on for each in first.support)]
        return [
            head,
            *(
                [row.name, row.class_name, *row.capabilities.values(), *map(str, row.support)]
                for row in self.rows
            ),
        ]


def families(frame: pd.DataFrame, rows: Rows) -> Families:
    """The family table."""
    everywhere = grid(frame)
    axes = {str(device): releases(ran) for device, ran in frame.groupby("device", sort=False)}
    parts = {
        str(name): part
        for name, part in frame.sort_values("place", kind="stable").groupby("family", sort=False)
    }
    held = {
        name: {title: capability(part, checks) for title, checks in CAPABILITIES.items()}
        for name, part in parts.items()
    }
    always = [title for title in CAPABILITIES if all(row[title] == "yes" for row in held.values())]
    table = []
    for name, part in parts.items():
        own = everywhere[everywhere["family"] == name]
        found = (
            support(own[own["run_on"] == run_on], run_on, axes[run_on.rpartition(" on ")[2]])
            for run_on in columns(frame)
        )
        told = {title: words for title, words in held[name].items() if title not in always}
        classes = listed(list(part["family_class"].unique()))
        table.append(Family(name, classes, told, tuple(found)))
    devices = {
        device: (in_words(axis, axis), frame[frame["device"] == device]["run_on"].nunique())
        for device, axis in axes.items()
    }
    return Families(tuple(table), devices, tuple(notes(always, parts, rows, devices)))


def support(own: pd.DataFrame, run_on: str, axis: Sequence[str]) -> Support:
    """What a family's cells of one backend come to.

    Args:
        own: of the grid.
        run_on: the backend and the device.
        axis: the releases measured on the device, oldest first.
    """
    asked = own[own["status"] != "not-asked"]
    if asked.empty:
        return Support(run_on, "none", look("not-asked").glyph, "not asked", (), "not asked")
    own = asked
    passes = own["status"].eq("pass")
    whole = passes.groupby(own["release"]).all()
    by_row = passes.groupby(own["architecture"], sort=False)
    full = int(by_row.all().sum())
    if own["status"].isin(UNKNOWN).all():
        return Support(run_on, "none", look("not-run").glyph, "not measured", (), "not measured")
    if whole.any():
        glyph, where = look("pass").glyph, brief(whole[whole].index, axis, reach(own))
    elif passes.any():
        glyph = look("degraded").glyph
        where = f"{full} of {by_row.ngroups}" if full else "in part"
    else:
        glyph, where = look("fail").glyph, "none"
    found = together(brief_exceptions(own, axis)).items()
    now = own[own["release"] == axis[-1]]
    return Support(
        run_on,
        tone(now, passes[now.index]),
        glyph,
        where,
        tuple((listed(names), tuple(said.split("\n"))) for said, names in found),
        verified(own, axis),
    )


def tone(now: pd.DataFrame, passes: pd.Series) -> str:
    """The tone of cells of one release: of the whole family there."""
    if now["status"].isin(UNKNOWN).all():
        return "none"
    if passes.any():
        return "good" if passes.all() else "known"
    return "none" if now["tone"].eq("none").all() else "bad"


def brief_exceptions(own: pd.DataFrame, axis: Sequence[str]) -> list[tuple[str, str]]:
    """(architecture, glyphs and releases in lines) for what does not pass; "" for a gap of all."""
    found = []
    for architecture, failing in own[own["status"] != "pass"].groupby("architecture", sort=False):
        known = reach(failing)
        parts = [
            f"{look(str(status)).glyph or look('not-run').glyph} {brief(those, axis, known)}"
            for status, those in failing.groupby("status", sort=False)["release"]
        ]
        found.append((str(architecture), "\n".join(parts)))
    lacking = [release for release in axis if release not in set(own["release"])]
    gap = [("", f"{look('not-run').glyph} {brief(lacking, axis)}")] if lacking else []
    return found + gap


def notes(
    always: Sequence[str],
    parts: dict[str, pd.DataFrame],
    rows: Rows,
    devices: dict[str, tuple[str, int]],
) -> list[str]:
    """The sentences below the table."""
    measured = "; ".join(f"on {device} {words}" for device, (words, _) in devices.items())
    signs = ", ".join(
        f"{look(status).glyph} {meaning}"
        for status, meaning in {
            "pass": "every architecture of the family passes",
            "degraded": "some do",
            "fail": "none does",
        }.items()
    )
    others = ", ".join(
        f"{look(status).glyph} {look(status).word}"
        for status in ("reference-broken", "stock-wrong", "unsupported", "not-run")
    )
    told = [
        f"{signs}. {others}.",
        f"5.15.0+ reaches the newest release measured, all is every release measured: {measured}."
        " Where a status changes from one of them to the next, those in between were measured as"
        " well, and the range ends where it changes.",
    ]
    if always:
        told.append(
            f"In every family these held in every cell where they were checked: {listed(always)}."
        )
    caches: dict[str, list[str]] = {}
    for name, part in parts.items():
        for original in original_caches(part["architecture"], rows):
            caches.setdefault(original, []).append(name)
    if caches:
        said = listed([f"{old} ({listed(names)})" for old, names in caches.items()])
        told.append(f"A standard cache stands in place of {said}.")
    if len(always) < len(CAPABILITIES):
        told.append(
            "“2 of 3 cells” counts architectures, releases and backends where it was checked."
        )
    return told


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


def original_caches(architectures: Iterable[str], rows: Rows) -> list[str]:
    """The arguments of a family's own code in whose place a standard cache is."""
    return sorted({rows.original_caches.get(name, "") for name in architectures} - {""})


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
