"""A whole run: environments made in parallel, cells run one release at a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from itertools import groupby
from pathlib import Path

from harness.cells import ROOT, Cell, Matrix
from harness.environment import check_hash, engine_hash
from harness.fingerprints import LONGEST_MESSAGE, fingerprint, scrub
from harness.results import Record, Store
from harness.verdict import fails_run, judge, load_expected

_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class OrchestrationError(RuntimeError):
    """tox itself, not a cell or an environment, failed."""


def select_releases(text: str, matrix: Matrix) -> list[str]:
    """Return the releases that a selection names, in the order of matrix/releases.toml.

    Args:
        text: parts joined by commas: "all", "sentinel", "oldest", "newest", a version, or the
            beginning of one: "5.0" is the newest row among 5.0.0, 5.0.1 and so on.
        matrix: whose rows are chosen from.

    Raises:
        ValueError: a part names no row; the message lists the rows.
    """
    versions = [row.version for row in matrix.releases]
    groups = {
        "all": versions,
        "sentinel": [row.version for row in matrix.releases if row.sentinel],
        "oldest": versions[:1],
        "newest": versions[-1:],
    }
    known = f"{', '.join(versions)}; {', '.join(groups)} also choose."
    chosen: set[str] = set()
    for part in filter(None, map(str.strip, text.split(","))):
        begins = [v for v in versions if f"{v}.".startswith(f"{part}.")]
        named = groups.get(part, begins[-1:])
        if not named:
            raise ValueError(f"Unknown release {part!r}. matrix/releases.toml has {known}")
        chosen.update(named)
    if not chosen:
        raise ValueError(f"{text!r} names no release. matrix/releases.toml has {known}")
    return [version for version in versions if version in chosen]


def tox(*arguments: str) -> list[str]:
    """Return the command that runs tox in the environment that this process runs in."""
    return [sys.executable, "-m", "tox", *arguments]


def make_environments(releases: Sequence[str]) -> dict[str, str]:
    """Make the environments of these releases in parallel.

    Returns:
        For each release whose environment could not be made, the reason.

    Raises:
        OrchestrationError: tox did not say what became of an environment.
    """
    names = [f"tf{release}" for release in releases]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tox.json"
        options = ["--notest", "--parallel-no-spinner", "--result-json", str(report)]
        made = subprocess.run(tox("run-parallel", "-e", ",".join(names), *options), cwd=ROOT)
        if not report.exists():
            raise OrchestrationError(f"tox made no environment: exit status {made.returncode}")
        environments = json.loads(report.read_text("utf-8"))["testenvs"]
    reasons = {}
    for release, name in zip(releases, names, strict=True):
        outcome = environments.get(name, {})
        if "result" not in outcome:
            raise OrchestrationError(f"tox did not say what became of environment {name}")
        if not outcome["result"]["success"]:
            reasons[release] = failure_of(outcome)
    return reasons


def failure_of(outcome: dict[str, object]) -> str:
    """Return what a failed step of an environment's set-up printed, from tox's own report."""
    steps = outcome.get("setup")
    failed = [step for step in steps if step["retcode"]] if isinstance(steps, list) else []
    if not failed:
        return "tox reported no failed step"
    return _ANSI.sub("", f"{failed[-1]['output']}\n{failed[-1]['err']}").strip()


def run_cells(release: str, arguments: Sequence[str]) -> int:
    """Run the cells of one release in its environment, as it is; return the exit status."""
    command = tox("run", "-q", "-e", f"tf{release}", "--skip-env-install", "--", *arguments)
    return subprocess.run(command, cwd=ROOT).returncode


def without_environment(cell: Cell, reason: str) -> Record:
    """Return the record of a cell whose environment could not be made."""
    return Record(
        architecture=cell.architecture.id,
        family=cell.architecture.family,
        family_class=cell.architecture.family_class,
        model_class=cell.architecture.model_class,
        dtype=cell.dtype,
        release=cell.release,
        backend=cell.backend.id,
        device=cell.device,
        status="env-error",
        message=scrub(reason)[-LONGEST_MESSAGE:],
        fingerprint=fingerprint("env-error", reason, "environment"),
        engine_hash=engine_hash(),
        check_hash=check_hash(cell),
        time=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def measure(cells: Sequence[Cell], arguments: Sequence[str], results: Path) -> list[str]:
    """Run cells, one release after the other, and record them.

    Args:
        cells: what to run; those of one release stand together.
        arguments: select the same cells within a release, for matrix/test_cells.py.
        results: the folder of the records.

    Returns:
        A line for each thing that is not as it should be; none if all is well.
    """
    groups = groupby(cells, key=lambda cell: cell.release)
    by_release = {release: list(group) for release, group in groups}
    started = time.monotonic()
    say(f"Making environments for transformers {', '.join(by_release)}")
    reasons = make_environments(list(by_release))
    say(f"Environments took {time.monotonic() - started:.0f} s")
    expected = load_expected()
    problems = []
    for number, (release, group) in enumerate(by_release.items(), start=1):
        place = f"[{number}/{len(by_release)}]"
        say(f"{place} transformers {release}: {len(group)} cells")
        started = time.monotonic()
        store = Store(results, release)
        status = 0
        if release in reasons:
            made = (without_environment(cell, reasons[release]) for cell in group)
            store.put(judge(record, expected) for record in made)
        else:
            status = run_cells(release, [*arguments, "--results", str(results)])
        found = {record.key: record for record in store.read()}
        worse = [problem for cell in group if (problem := problem_of(cell, found))]
        # Status 1 says that cells failed, which the records say better.
        if status > 1 or (status == 1 and not worse):
            worse.append(f"transformers {release}: the run of its cells ended with {status}")
        problems += worse
        counts = Counter(found[key(cell)].status for cell in group if key(cell) in found)
        summary = ", ".join(f"{count} {status}" for status, count in counts.most_common())
        say(f"{place} {time.monotonic() - started:.0f} s: {summary or 'no records'}")
    return problems


def say(line: str) -> None:
    """Print progress at once, also into a pipe."""
    print(line, flush=True)


def key(cell: Cell) -> tuple[str, str, str]:
    """Return the key of a cell's record in the store of its release."""
    return cell.architecture.id, cell.backend.id, cell.device


def problem_of(cell: Cell, found: Mapping[tuple[str, str, str], Record]) -> str:
    """Return what is wrong with a cell and the line that runs it again; nothing if all is well."""
    record = found.get(key(cell))
    again = (
        f"tox -e matrix -- --releases {cell.release} --arch {cell.architecture.id}"
        f" --attn {cell.backend.id} --device {cell.device}"
    )
    if record is None:
        return f"{cell.id}: lost, it left no record\n    {again}"
    if fails_run(record):
        lines = record.message.strip().splitlines() or ["no message"]
        return f"{cell.id}: {record.status}: {lines[0]}\n    {again}"
    return ""
