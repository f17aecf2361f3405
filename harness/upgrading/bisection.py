"""The first release in which a cell fails, by halving what lies between a good and a bad one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from packaging.version import Version

from harness.judging.changes import state
from harness.records import Record
from rabbitllm.releases.bisection import Found
from rabbitllm.releases.bisection import bisect as halve

BISECTED = "bisected"
"""Folder, in that of the records, for those made with the packages of each release's day."""


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


def verdict(record: Record) -> bool | None:
    """Whether a cell works; None if that cannot be told."""
    return is_good(record) if is_good(record) or is_bad(record) else None


def bisect(
    releases: Sequence[str], good: Record, bad: Record, measure: Callable[[str], Record]
) -> Found[Record]:
    """Where a cell broke; as `rabbitllm.releases.bisection.bisect`."""
    return halve(releases, good, bad, measure, verdict)
