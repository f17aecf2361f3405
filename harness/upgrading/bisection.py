"""The first release in which a cell fails, by halving what lies between a good and a bad one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from packaging.version import Version

from harness.judging.changes import state
from harness.records import Record

BISECTED = "bisected"
"""Folder, in that of the records, for those made with the packages of each release's day."""


@dataclass(frozen=True)
class Found:
    """Where a cell broke.

    Attributes:
        good: record of the newest release before the first bad one that could be measured.
        bad: record of the first bad one.
        skipped: releases between the two that could not be measured.
    """

    good: Record
    bad: Record
    skipped: tuple[str, ...]


def is_good(record: Record) -> bool:
    """Whether a cell works."""
    return state(record) == "good"


def is_bad(record: Record) -> bool:
    """Whether a cell fails for certain: not that it was not measured, or is flaky."""
    return state(record) in ("bad", "degraded", "unsupported")


def ends(records: Iterable[Record], last: str = "") -> tuple[Record, Record]:
    """The newest good record, and the oldest bad one after it.

    Args:
        records: of one cell, raw, of several releases.
        last: the bad release that is asked about; empty for the newest that is bad.

    Raises:
        ValueError: there is no such pair; the message says what there is.
    """
    ordered = sorted(records, key=lambda record: Version(record.release))
    listed = ", ".join(f"{record.release} {record.status}" for record in ordered)
    bad = [r for r in ordered if is_bad(r) and last in ("", r.release)]
    if not bad:
        raise ValueError(
            f"Nothing to find: {f'{last} is not' if last else 'no release is'} bad ({listed})"
        )
    newest_bad = Version(bad[-1].release)
    good = [r for r in ordered if is_good(r) and Version(r.release) < newest_bad]
    if not good:
        raise ValueError(
            f"No release before {bad[-1].release} is good ({listed}). Measure older ones: "
            "tox -e matrix -- --releases all"
        )
    begin = Version(good[-1].release)
    first = next(r for r in ordered if is_bad(r) and Version(r.release) > begin)
    return good[-1], first


def between(versions: Iterable[str], good: str, bad: str) -> list[str]:
    """The releases after `good` and before `bad`, patches and pre-releases too, in order."""
    low, high = Version(good), Version(bad)
    return [str(version) for version in sorted(map(Version, versions)) if low < version < high]


def bisect(
    releases: Sequence[str], good: Record, bad: Record, measure: Callable[[str], Record]
) -> Found:
    """Where a cell broke.

    Args:
        releases: between the two, in order. One that is neither good nor bad is passed over, and
            one beside it is measured instead.
        good: record of a release before all of these.
        bad: record of one after all of them.
        measure: measures the cell in a release.
    """
    unknown, skipped = list(releases), []
    while unknown:
        middle = len(unknown) // 2
        record = measure(unknown[middle])
        if is_good(record):
            good, unknown = record, unknown[middle + 1 :]
        elif is_bad(record):
            bad, unknown = record, unknown[:middle]
        else:
            skipped.append(unknown.pop(middle))
    low, high = Version(good.release), Version(bad.release)
    return Found(good, bad, tuple(r for r in skipped if low < Version(r) < high))
