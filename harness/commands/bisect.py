"""Find the release in which a cell broke, patches and pre-releases included.

Looks between the newest good and the oldest bad release that have records. Each release is
installed with the dependencies of the day when it came out.

exit status: 0 if the release was found, 1 if it is not a release that broke the cell, 2 if there is
nothing to look between, or the index was not reached
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from dataclasses import replace
from pathlib import Path

from harness.judging.cell_name import SHAPE, find, parse_cell
from harness.judging.changes import cause, changed_probes
from harness.judging.expected_failures import entries_for, load_expected
from harness.matrix import ROOT, load_matrix
from harness.records import Record, Store, read_all
from harness.running.run import Work, run_cells
from harness.upgrading.bisection import BISECTED, bisect, ends, is_bad, is_good
from rabbitllm.releases.bisection import Found
from rabbitllm.releases.environments import default_root
from rabbitllm.releases.index import ask_index, of_its_time
from rabbitllm.releases.selection import between

EXAMPLE = "  tox -e harness -- bisect gemma2/sdpa"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("cell", help=f"{SHAPE}; the release is the bad one")
    parser.add_argument("--results", type=Path, default=ROOT / "reports" / "results", metavar="DIR")


def main(arguments: argparse.Namespace) -> int:
    """Measures as few releases as can tell, and prints the two between which the cell broke.

    Raises:
        OrchestrationError: tox failed, not a cell.
        ValueError: there is nothing to look between, or the index was not reached.
    """
    begun = time.monotonic()
    name = parse_cell(arguments.cell)
    of_cell = find(replace(name, release=""), read_all(arguments.results), str(arguments.results))
    good, bad = ends(of_cell, name.release)
    releases = between(ask_index(pre=True), good.release, bad.release)
    print(f"{good.cell} is good, {bad.release} is bad; between: {', '.join(releases) or 'nothing'}")
    found = search(good, bad, releases, arguments.results / BISECTED)
    print("\n".join(in_words(found) if isinstance(found, Found) else [found]))
    print(f"{time.monotonic() - begun:.0f} s")
    return 0 if isinstance(found, Found) else 1


def search(good: Record, bad: Record, releases: list[str], results: Path) -> Found[Record] | str:
    """Where the cell broke, or why it was no release that broke it.

    The two ends are measured again first, with the dependencies of their time.
    """
    first, last = (measured(record.release, record, results) for record in (good, bad))
    if not is_bad(last):
        blamed = differing(last, bad)
        return f"{bad.release} works with the packages of its time; newer ones broke it: {blamed}"
    if not is_good(first):
        blamed = differing(first, good)
        return f"{good.release} fails with the packages of its time; newer ones mended it: {blamed}"

    def look(release: str) -> Record:
        record = measured(release, good, results)
        print(
            f"{release}: {'; '.join([*probes_in_words(first, record), record.status])}", flush=True
        )
        return record

    return bisect(releases, first, last, look)


def measured(release: str, like: Record, results: Path) -> Record:
    """The record of a cell in a release, with the dependencies of that release's day."""
    day, requirements = of_its_time(release, default_root())
    cell = load_matrix().cell(like.key, release)
    print(f"{cell.id}, with the packages of {day}", flush=True)
    with contextlib.redirect_stdout(sys.stderr):
        run_cells([cell], Work(results, candidates={release: requirements}))
    return next(r for r in Store(results, release).read() if r.key == like.key)


def differing(one: Record, other: Record) -> str:
    """The packages whose versions differ."""
    names = sorted({*one.versions, *other.versions})
    pairs = [(n, one.versions.get(n), other.versions.get(n)) for n in names]
    return ", ".join(f"{n} {a} -> {b}" for n, a, b in pairs if a != b) or "none that is known"


def in_words(found: Found[Record]) -> list[str]:
    """What was found, in lines."""
    good, bad = found.good, found.bad
    entries = entries_for(bad, load_expected())
    return [
        f"last good: {good.release}, first bad: {bad.release} ({bad.status})",
        *(f"  could not be measured: {release}" for release in found.skipped),
        *probes_in_words(good, bad),
        f"packages: {differing(good, bad)}",
        f"cause: {cause(bad, entries)}",
        *(f"side: {entry.side}; expected: {entry.name}; {entry.link}" for entry in entries),
    ]


def probes_in_words(one: Record, other: Record) -> list[str]:
    """A line for each contract probe that differs, or one that says why there is none."""
    lacking = [record.release for record in (one, other) if not record.probes]
    if lacking:
        return [f"no probes of {' and '.join(lacking)}: stock could not be built"]
    pairs = changed_probes(one, other).items()
    return [f"probe {name}: {old} -> {new}" for name, (old, new) in pairs] or [
        f"probes as in {one.release}"
    ]
