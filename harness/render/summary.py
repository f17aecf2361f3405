"""What the matrix says in sentences that a reader can act on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import pandas as pd

from harness.records import UNMEASURED
from harness.render.frames import columns, grid, reach, releases
from harness.render.ranges import Reach, in_words, span
from harness.render.statuses import caption, look

UNKNOWN = UNMEASURED | {"no-data"}
"""Statuses of cells of which nothing is known: neither that they work nor that they do not."""


def together(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Words -> the names of which they are said, in order."""
    said: dict[str, list[str]] = {}
    for name, words in pairs:
        said.setdefault(words, []).append(name)
    return said


def listed(names: Sequence[str], last: str = "and") -> str:
    """The names as "a", "a and b" or "a, b and c"."""
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def sentences(frame: pd.DataFrame) -> list[tuple[str, list[str]]]:
    """For each device, which families work, and what to know about the others.

    A family works on a device if each of its architectures passes on every release, with one of the
    backends at least.
    """
    everywhere = grid(frame)
    found = []
    for device, part in everywhere.groupby("device", sort=False):
        own = frame[frame["device"] == device]
        said, exceptions = device_sentence(part, str(device), columns(own))
        found.append((said, [*exceptions, *weights_sentence(own)]))
    return found


def weights_sentence(own: pd.DataFrame) -> list[str]:
    """How many of a device's cells are tiny models; nothing where none ran."""
    ran = own[~own["status"].isin({*UNKNOWN, "unsupported", "not-asked"})]
    real = ran[ran["real"]]
    if ran.empty:
        return []
    rest = f", {len(real):,} of {listed(list(real['architecture'].unique()))}, as published"
    tiny = f"{len(ran) - len(real):,} of the {len(ran):,} cells that ran are of tiny models"
    return [f"{tiny} with random weights{rest if len(real) else ''}."]


def device_sentence(
    part: pd.DataFrame, device: str, run_on: Sequence[str]
) -> tuple[str, list[str]]:
    """The sentence of a device, and one for each kind of exception to it."""
    backends = listed([name.removesuffix(f" on {device}") for name in run_on])
    ran = part[part["tone"] != "none"]
    if ran.empty:
        return f"On {device} nothing ran.", []
    axis = releases(ran)
    # What has no result does not work: a family that lacks a release is not whole there.
    by_family = passing(ran).groupby(["release", "family"]).all().unstack("family")
    works = by_family.reindex(index=axis, columns=part["family"].unique()).eq(True)
    always, now = works.all(), works[works.index == axis[-1]].all()
    if always.all():
        said = f"{how_many(now)} families work on transformers {in_words(axis, axis)}"
    else:
        said = (
            f"{how_many(now)} families work on transformers {axis[-1]}, the newest measured, "
            f"and {always.sum()} on every release from {axis[0]} ({len(axis)} releases)"
        )
    said = f"On {device}, {said}, with {backends}."
    counted = part[(part["tone"] != "none") | (part["status"] == "unsupported")]
    found = [
        (str(name), need(own, device, axis))
        for name, own in counted.groupby("architecture", sort=False)
        if not own["status"].eq("pass").all()
    ]
    missing = int(part["status"].isin(UNKNOWN).sum())
    gap = [f"{missing:,} of {len(part):,} cells were not measured."] if missing else []
    sentences = [
        f"{listed(names)} {plural(words) if len(names) > 1 else words}."
        for words, names in together(found).items()
    ]
    return said, sentences + gap


def plural(words: str) -> str:
    """What `need` says of one architecture as it is said of several."""
    return words.replace("needs ", "need ").replace("does not ", "do not ")


def passing(ran: pd.DataFrame) -> pd.Series:
    """By release, family and architecture, whether one backend at least passes."""
    keys = [ran["release"], ran["family"], ran["architecture"]]
    return ran["status"].eq("pass").groupby(keys, sort=False).any()


def how_many(works: pd.Series) -> str:
    """In words how many, as "all 11" or "10 of 11"."""
    return f"all {len(works)}" if works.all() else f"{works.sum()} of {len(works)}"


def need(own: pd.DataFrame, device: str, axis: Sequence[str]) -> str:
    """What one architecture needs on a device: another backend, another release."""
    passes = own["status"].eq("pass")
    found: dict[str, dict[str, list[str]]] = {}  # what is said -> why -> the releases
    for release, at in own.groupby("release", sort=False):
        if not passes[at.index].all():
            usable = tuple(at.loc[passes[at.index], "run_on"])
            words = listed([n.removesuffix(f" on {device}") for n in usable], "or")
            why = listed(sorted({look(s).word for s in at.loc[~passes[at.index], "status"]}))
            said = f"needs {words}" if usable else "does not work"
            found.setdefault(said, {}).setdefault(why, []).append(str(release))
    known = reach(own)
    return "; ".join(
        f"{said} {span(chain(*whys.values()), axis, 'any' if 'not' in said else 'every', known)}"
        f" ({reasons(whys, axis, known)})"
        for said, whys in found.items()
    )


def reasons(whys: Mapping[str, Sequence[str]], axis: Sequence[str], known: Reach) -> str:
    """Reasons in words; of several, each with the releases that it is true of."""
    if len(whys) == 1:
        return next(iter(whys))
    return ", ".join(f"{why} {span(chosen, axis, reach=known)}" for why, chosen in whys.items())


def row_spans(
    statuses: Sequence[str], axis: Sequence[str], known: Reach | None = None
) -> dict[str, str]:
    """Status -> where in a row of the matrix it is, such as "up to 5.20.2"; the oldest first."""
    found: dict[str, list[str]] = {}
    for status, release in zip(statuses, axis, strict=True):
        found.setdefault(status, []).append(release)
    if len(found) == 1:
        return dict.fromkeys(found, "on all")
    return {status: span(chosen, axis, reach=known) for status, chosen in found.items()}


def row_summary(statuses: Sequence[str], axis: Sequence[str], known: Reach | None = None) -> str:
    """One row of a matrix in words: "pass up to 5.20.2; stock fails from 5.21.0"."""
    spans = row_spans(statuses, axis, known).items()
    return "; ".join(f"{look(status).word} {where}" for status, where in spans)


def row_caption(statuses: Sequence[str], axis: Sequence[str], known: Reach | None = None) -> str:
    """The same with the glyph of each status before its word."""
    spans = row_spans(statuses, axis, known).items()
    return "; ".join(f"{caption(status)} {where}" for status, where in spans)


def verified(part: pd.DataFrame, axis: Sequence[str]) -> str:
    """Where every cell passes: "all", or ranges; and what does not pass or did not run.

    Where no release passes in full, the architectures that pass on each.

    Args:
        part: of the grid, one backend on its device.
        axis: the releases that "all" stands for.
    """
    if part["tone"].eq("none").all():
        return "not measured"
    passes = part["status"].eq("pass")
    whole = passes.groupby(part["release"]).all()
    good = list(whole[whole].index)
    words = (
        "all" if set(good) == set(axis) else in_words(good, axis, reach(part)) or always(part, axis)
    )
    worse = together(exceptions(part, axis))
    return "; ".join([words, *(f"{listed(names)} {said}" for said, names in worse.items())])


def always(part: pd.DataFrame, axis: Sequence[str]) -> str:
    """The architectures of a part that pass wherever it has cells, in words; else that none do."""
    passes = part["status"].eq("pass").groupby(part["architecture"], sort=False).all()
    names = list(passes[passes].index)
    where = span(part["release"], axis)
    return f"{listed(names)} {where}" if names else "no release in full"


def exceptions(part: pd.DataFrame, order: Sequence[str]) -> list[tuple[str, str]]:
    """(architecture, words) for what does not pass in this part of the grid."""
    found = []
    worse = part[part["status"] != "pass"]
    for architecture, own in worse.groupby("architecture", sort=False):
        words, known = [], reach(own)
        for status, failing in own.groupby("status", sort=False)["release"]:
            whole = "any" if status in UNKNOWN else "every"
            words.append(f"{look(str(status)).word} {span(failing, order, whole, known)}")
        found.append((str(architecture), ", ".join(words)))
    return found
