"""Releases in words: "5.0.0 to 5.23.0 (24 releases)" instead of a list of every one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

Reach = Mapping[str, tuple[str, str]]
"""Release -> the first and the last release that what is said of it holds for: beyond the releases
of the matrix, those between two of them, see `harness.upgrading.boundaries`."""


def runs(chosen: Iterable[str], order: Sequence[str]) -> list[list[str]]:
    """Splits the chosen releases into runs of neighbours in `order`, the releases measured.

    A release that `order` does not hold is left out.
    """
    wanted = set(chosen)
    found: list[list[str]] = []
    previous = False
    for release in order:
        if release in wanted:
            if not previous:
                found.append([])
            found[-1].append(release)
        previous = release in wanted
    return found


def in_words(chosen: Iterable[str], order: Sequence[str], reach: Reach | None = None) -> str:
    """The chosen releases as ranges over `order`; a range of 3 or more says how many.

    A range speaks for the releases in `order`, and for those that `reach` adds at its ends: what
    else lies between two of them was not measured, so the count stands beside the range.
    """
    parts = []
    for run in runs(chosen, order):
        first, last = ends(run, reach)
        count = f" ({len(run)} releases)" if len(run) > 2 else ""
        whole = len(run) > 2 or (first, last) != (run[0], run[-1])
        parts += [f"{first} to {last}{count}"] if whole else run
    return ", ".join(parts)


def brief(chosen: Iterable[str], order: Sequence[str], reach: Reach | None = None) -> str:
    """The chosen releases in few characters: "all", "5.15.0+", "5.0.0-5.3.0, 5.9.0".

    "5.15.0+" reaches the newest release in `order`.
    """
    found = runs(chosen, order)
    if found == [[*order]]:
        return "all"
    parts = []
    for run in found:
        first, last = ends(run, reach)
        if first == last:
            parts.append(first)
        else:
            parts.append(f"{first}+" if run[-1] == order[-1] else f"{first}\N{EN DASH}{last}")
    return ", ".join(parts)


def span(
    chosen: Iterable[str], order: Sequence[str], whole: str = "every", reach: Reach | None = None
) -> str:
    """Where in `order` the chosen releases lie, as the end of a sentence.

    "from 5.21.0" reaches the newest measured, "up to 5.12.1" starts at the oldest. All of them are
    "on every release measured", or what `whole` says in place of "every".
    """
    found = runs(chosen, order)
    if [[*order]] == found:
        return f"on {whole} release measured"
    parts = []
    for run in found:
        first, last = ends(run, reach)
        if first == last:
            parts.append(f"on {first}")
        elif run[-1] == order[-1]:
            parts.append(f"from {first}")
        elif run[0] == order[0]:
            parts.append(f"up to {last}")
        else:
            parts.append(f"on {first} to {last}")
    return ", ".join(parts)


def ends(run: Sequence[str], reach: Reach | None) -> tuple[str, str]:
    """The first and the last release of a run of neighbours, those that it reaches included."""
    known = reach or {}
    return known.get(run[0], (run[0], ""))[0], known.get(run[-1], ("", run[-1]))[1]
