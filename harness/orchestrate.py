"""A whole run: environments made in parallel, cells run one release at a time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.cells import ROOT, Matrix

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
