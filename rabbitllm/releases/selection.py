"""Which releases a text such as "5.0..newest" means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from packaging.version import InvalidVersion, Version

OLDEST, NEWEST, MAIN = "5.0.0", "newest", "main"
"""The first release of the major that is measured; the newest on the index; what is on the main
branch of transformers' repository."""
SHAPE = "A..B, such as 5.0..newest"


def between(versions: Iterable[str], good: str, bad: str) -> list[str]:
    """The releases after `good` and before `bad`, patches and pre-releases too, in order."""
    low, high = Version(good), Version(bad)
    return [str(version) for version in sorted(map(Version, versions)) if low < version < high]


def ends(text: str, versions: Iterable[str]) -> tuple[str, str]:
    """The two releases that a range names.

    Args:
        text: such as "5.0..5.24", "5.12.1..newest" or "5.24.0..main". "5.0" is the oldest patch of
            a minor release where a range begins, and the newest where one ends.
        versions: that there are.

    Raises:
        ValueError: it is no range, names a release that does not exist, or ends before it begins.
    """
    known = in_order(versions)
    first, dots, last = (part.strip() for part in text.partition(".."))
    if not (first and dots and last):
        raise ValueError(f"{text!r} is no range of releases: give {SHAPE}.")
    low, high = release(first, known, 0), release(last, known, -1)
    if (MAIN not in (low, high) and Version(low) < Version(high)) or (low != MAIN == high):
        return low, high
    raise ValueError(f"{text!r} is no range of releases: {low} does not come before {high}.")


def release(text: str, known: Sequence[str], patch: int) -> str:
    """The release that a text names.

    Args:
        text: a release such as "5.13.0", a minor such as "5.13", "newest", or "main".
        known: the releases that there are, in order.
        patch: which one of a minor's releases that is: 0 the oldest, -1 the newest.

    Raises:
        ValueError: there is no such release.
    """
    if text == MAIN:
        return MAIN
    final = [version for version in known if not Version(version).is_prerelease]
    if text == NEWEST and final:
        return final[-1]
    try:
        wanted = Version(text)
    except InvalidVersion:
        raise ValueError(f"{text!r} is no release of transformers: give {SHAPE}.") from None
    of_minor = [v for v in final if text.count(".") < 2 and Version(v).release[:2] == minor(text)]
    named = of_minor or [version for version in known if Version(version) == wanted]
    if named:
        return named[patch]
    near = get_close_matches(str(wanted), known, n=5, cutoff=0) or ["none"]
    raise ValueError(f"The index has no transformers {text}. Near: {', '.join(near)}.")


def select(text: str, versions: Iterable[str], pre: bool = False) -> list[str]:
    """The releases that are checked: of a range the newest patch of each minor, and its two ends.

    Args:
        text: ranges and releases, joined by commas: "5.0..newest", "5.0,5.12.1,newest,main".
        versions: that there are.
        pre: whether the newest pre-release is chosen as well, if it is newer than all releases.

    Raises:
        ValueError: as `ends`.
    """
    known = in_order(versions)
    chosen = {known[-1]} if pre and known else set()
    for part in filter(None, map(str.strip, text.split(","))):
        if ".." not in part:
            chosen.add(release(part, known, -1))
            continue
        low, high = ends(part, known)
        limit = known[-1] if high == MAIN else high
        inside = [low, *between(known, low, limit), limit]
        newest = {minor(v): v for v in inside if not Version(v).is_prerelease}
        chosen |= {low, high, *newest.values()}
    if not chosen:
        raise ValueError(f"{text!r} names no release: give {SHAPE}.")
    return in_order(chosen)


def in_order(versions: Iterable[str]) -> list[str]:
    """Releases, the oldest first; `MAIN` comes after all."""
    return sorted(versions, key=lambda v: (v == MAIN, Version("0" if v == MAIN else v)))


def minor(version: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return (*Version(version).release, 0)[:2]
