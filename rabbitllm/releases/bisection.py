"""The first release that is bad, by halving what lies between a good and a bad one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Found(Generic[T]):
    """Where something broke.

    Attributes:
        good: what was measured in the newest release before the first bad one.
        bad: what was measured in the first bad one.
        skipped: releases between the two that could not be measured.
    """

    good: T
    bad: T
    skipped: tuple[str, ...]


def bisect(
    releases: Sequence[str],
    good: T,
    bad: T,
    measure: Callable[[str], T],
    verdict: Callable[[T], bool | None],
) -> Found[T]:
    """Where something broke.

    Args:
        releases: between the two, in order. One that is neither good nor bad is passed over, and
            one beside it is measured instead.
        good: what was measured in a release before all of these.
        bad: what was measured in one after all of them.
        measure: measures a release.
        verdict: whether what was measured is good; None where that cannot be told.
    """
    low, high = -1, len(releases)
    unknown, skipped = list(range(high)), []
    while unknown:
        middle = len(unknown) // 2
        place = unknown[middle]
        measured = measure(releases[place])
        works = verdict(measured)
        if works is None:
            skipped.append(unknown.pop(middle))
        elif works:
            good, low, unknown = measured, place, unknown[middle + 1 :]
        else:
            bad, high, unknown = measured, place, unknown[:middle]
    return Found(good, bad, tuple(releases[n] for n in sorted(skipped) if low < n < high))
