"""Releases in words: "5.0.0 to 5.23.0 (24 releases)" instead of a list of every one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


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


def in_words(chosen: Iterable[str], order: Sequence[str]) -> str:
    """The chosen releases as ranges over `order`; a range of 3 or more says how many.

    A range speaks for the releases in `order` alone: what lies between two of them was not
    measured, so the count stands beside the range.
    """
    return ", ".join(
        ", ".join(run) if len(run) < 3 else f"{run[0]} to {run[-1]} ({len(run)} releases)"
        for run in runs(chosen, order)
    )


def span(chosen: Iterable[str], order: Sequence[str], whole: str = "every") -> str:
    """Where in `order` the chosen releases lie, as the end of a sentence.

    "from 5.21.1" reaches the newest measured, "up to 5.12.1" starts at the oldest. All of them are
    "on every release measured", or what `whole` says in place of "every".
    """
    found = runs(chosen, order)
    if [[*order]] == found:
        return f"on {whole} release measured"
    parts = []
    for run in found:
        if run[-1] == order[-1]:
            parts.append(f"from {run[0]}" if len(run) > 1 else f"on {run[0]}")
        elif run[0] == order[0]:
            parts.append(f"up to {run[-1]}" if len(run) > 1 else f"on {run[0]}")
        else:
            parts.append(f"on {run[0]}" + (f" to {run[-1]}" if len(run) > 1 else ""))
    return ", ".join(parts)
