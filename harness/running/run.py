"""A run: environments made in parallel, stale cells run, a few lots at a time, and judged."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from itertools import chain, groupby
from pathlib import Path

from harness.judging.cell_name import again
from harness.judging.expected_failures import fails_run, judge, load_expected, tokenizer
from harness.judging.tokenizers import told_apart
from harness.matrix import Cell, Key, cell_id
from harness.records import Record, Store
from harness.records.blank import blank
from harness.records.failure import LONGEST_MESSAGE, fingerprint, tail
from harness.running.environments import Environment, enter, hardware_of, make_environments
from harness.running.freshness import stale
from harness.running.lots import deal
from harness.running.outcome import Outcome
from harness.running.signals import end_children, stoppable
from harness.running.spot_check import recorded, sample, verdicts

GRACE = 1.0
"""Seconds in which the processes of a run that is stopped may end by themselves, as at Ctrl-C."""


@dataclass(frozen=True)
class Work:
    """How to run cells.

    Attributes:
        results: the folder of the records.
        jobs: lots of cells that run at the same time, on one core each.
        force: run cells whose record is current, too.
        spot_check: where all records are current, run a few cells again and compare.
        candidates: release -> requirement, for those that are no row of matrix/releases.toml.
        surroundings: id of a row of matrix/environments.toml; empty for what is pinned.
    """

    results: Path
    jobs: int = 1
    force: bool = False
    spot_check: bool = False
    candidates: Mapping[str, str] = field(default_factory=dict)
    surroundings: str = ""


@stoppable(first=end_children)  # unwinding kills tox, whose own children would be left
def run_cells(cells: Sequence[Cell], work: Work) -> Outcome:
    """Runs the cells whose record is not current, and judges the records of all.

    Args:
        cells: what to know about, of one device.
        work: how.

    Raises:
        OrchestrationError: tox failed, not a cell.
        SystemExit: SIGTERM came; what was recorded until then stays.
    """
    by_release = {
        release: list(group) for release, group in groupby(cells, key=lambda cell: cell.release)
    }
    started = time.monotonic()
    say(f"Making environments for transformers {', '.join(by_release)}")
    environments = make_environments(list(by_release), work.candidates, work.surroundings)
    say(f"Environments took {time.monotonic() - started:.0f} s")
    broken = {release: env.reason for release, env in environments.items() if env.reason}
    for release, reason in broken.items():
        records = [without_environment(cell, reason) for cell in by_release[release]]
        Store(work.results, release).put(records)
    made = {release: group for release, group in by_release.items() if release not in broken}
    pending = to_run(made, environments, work)
    count = sum(map(len, pending.values()))
    say(f"{count} of {len(cells)} cells to run, the records of the others are current")
    if work.spot_check and made and not count:
        pending = sample(made)
        problems = spot_check(pending, work)
    else:
        problems = run_lots(
            deal(pending, work.jobs, known_seconds(made, work)), work, Progress(count)
        )
    known, ran = (
        {cell.id for group in groups.values() for cell in group} for groups in (made, pending)
    )
    return outcome(by_release, known - ran, problems, work.results)


def run_lots(lots: Sequence[Sequence[Cell]], work: Work, progress: Progress) -> list[str]:
    """Runs lots, each of one release; returns what went wrong with the runs themselves."""
    with ThreadPoolExecutor(work.jobs) as pool:
        runs = [pool.submit(run_lot, lot, work, progress) for lot in lots]
        try:
            with stoppable():
                return [problem for run in runs if (problem := run.result())]
        finally:
            # Something is left only if this process is told to stop, or a run raises. Those to come
            # are cancelled before the others are ended, lest they begin in their place.
            for run in runs:
                run.cancel()
            while wait(runs, GRACE).not_done:
                end_children()


def spot_check(chosen: Mapping[str, Sequence[Cell]], work: Work) -> list[str]:
    """Runs cells that have current records; returns what is not as recorded, or went wrong."""
    say("A few are measured again all the same, and compared; to measure all again: --force")
    before = recorded(chosen, work.results)
    problems = run_lots(list(chosen.values()), work, Progress(sum(map(len, chosen.values()))))
    for words, same in verdicts(before, recorded(chosen, work.results)):
        say(words)
        problems += [] if same else [words]
    return problems


def to_run(
    by_release: Mapping[str, Sequence[Cell]],
    environments: Mapping[str, Environment],
    work: Work,
) -> dict[str, Sequence[Cell]]:
    """The cells that have to run, of each release that has such."""
    if work.force:
        return dict(by_release)
    records = {release: Store(work.results, release).read() for release in by_release}
    recorded = next((release for release in by_release if records[release]), None)
    if recorded is None:
        return dict(by_release)
    device = by_release[recorded][0].device
    hardware = hardware_of(recorded, work.candidates, device, work.surroundings)
    pending = {
        release: stale(group, records[release], environments[release].versions, hardware)
        for release, group in by_release.items()
    }
    return {release: chosen for release, chosen in pending.items() if chosen}


def known_seconds(releases: Iterable[str], work: Work) -> dict[Key, float]:
    """What the cells of these releases took when they were recorded; the last release counts."""
    records = chain.from_iterable(Store(work.results, release).read() for release in releases)
    return {record.key: record.seconds for record in records}


class Progress:
    """Cells done of all, and how long the rest will take at this rate."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self.begun = time.monotonic()
        self.lock = threading.Lock()

    def ended(self, release: str, count: int, summary: str) -> None:
        """Prints what became of a lot of a release's cells."""
        with self.lock:
            self.done += count
            rest = (time.monotonic() - self.begun) / self.done * (self.total - self.done)
            left = f", about {rest / 60:.0f} min left" if self.done < self.total else ""
            say(f"[{self.done}/{self.total}] transformers {release}: {summary}{left}")


def run_lot(chosen: Sequence[Cell], work: Work, progress: Progress) -> str:
    """Runs cells of one release; returns what went wrong with the run itself, or nothing."""
    release, device = chosen[0].release, chosen[0].device
    begun = time.monotonic()
    names = ",".join(cell.id for cell in chosen)
    ended = enter(
        release,
        work.candidates,
        *("--device", device, "--cells", names, "--results", str(work.results)),
        surroundings=work.surroundings,
    )
    found = {record.key: record for record in Store(work.results, release).read()}
    counts = Counter(found[cell.key].status for cell in chosen if cell.key in found)
    summary = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    seconds = time.monotonic() - begun
    progress.ended(release, len(chosen), f"{summary or 'no records'} in {seconds:.0f} s")
    # Status 1 says that a test failed, which a record says better if it is a cell's.
    expected = load_expected()
    ran = told_apart(found[cell.key] for cell in chosen if cell.key in found)
    measured = [judge(record, expected) for record in ran]
    if ended.returncode == 0 or (ended.returncode == 1 and any(map(fails_run, measured))):
        return ""
    return (
        f"transformers {release}: the run of its cells ended with {ended.returncode}\n"
        f"{ended.stdout[-LONGEST_MESSAGE:]}"
    )


def outcome(
    by_release: Mapping[str, Sequence[Cell]],
    current: Collection[str],
    problems: Sequence[str],
    results: Path,
) -> Outcome:
    """What became of a run, from the records of its cells.

    Args:
        by_release: all of its cells.
        current: the names of those that did not have to run.
        problems: what went wrong with the run itself; cells that are lost, or neither pass nor are
            known to fail, add to it.
        results: the folder of the records.
    """
    expected = load_expected()
    found: dict[str, Record] = {}
    for release in by_release:
        read = told_apart(Store(results, release).read())
        found |= {record.cell: judge(record, expected) for record in read}
    cells = [cell for group in by_release.values() for cell in group]
    records = [found[cell.id] for cell in cells if cell.id in found]
    fresh, kept = (
        [record for record in records if (record.cell in current) is before]
        for before in (False, True)
    )
    wrong = [problem for cell in cells if (problem := problem_of(cell.id, found.get(cell.id)))]
    names = dict.fromkeys(cell_id(tokenizer(cell), cell.release) for cell in cells)
    wrong += [problem_of(name, found[name]) for name in names if name in found]
    return Outcome(len(cells), fresh, kept, [*problems, *filter(None, wrong)])


def problem_of(name: str, record: Record | None) -> str:
    """What is wrong with a cell and the line that runs it again; nothing if all is well."""
    if record is None:
        return f"{name}: lost, it left no record\n    {again(name)}"
    if fails_run(record):
        lines = record.message.strip().splitlines() or ["no message"]
        return f"{name}: {record.status}: {lines[0]}\n    {again(name)}"
    return ""


def without_environment(cell: Cell, reason: str) -> Record:
    """The record of a cell whose environment could not be made."""
    record = blank(cell, "env-error", tail(reason, LONGEST_MESSAGE))
    return replace(record, fingerprint=fingerprint("env-error", reason, "environment"))


def say(line: str) -> None:
    """Prints progress at once, also into a pipe."""
    print(line, flush=True)
