"""A run that is killed at any moment loses nothing, and the next one does only the rest."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from harness.matrix import ROOT, load_matrix
from harness.records import read_all

KILLS = 20
RELEASES = ["5.0.0", "5.1.0"]
# The real planning and store; a cell takes no longer than its record takes to be written.
RUN = """
import sys
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

from harness.matrix import load_matrix
from harness.running import run as runs
from harness.running.environments import Environment
from harness.records import Store
from harness.records.blank import blank

results = Path(sys.argv[1])
cells = {cell.id: cell for cell in load_matrix().cells(sys.argv[2:])}
versions = {"python": "3.11.7"}


def enter(release, candidates, *arguments, surroundings):
    for name in arguments[arguments.index("--cells") + 1].split(","):
        made = blank(cells[name], "pass", "x" * 20_000)
        record = replace(made, versions=versions, hardware="cpu")
        Store(results, release).put([record])
        print(name, flush=True)
    return CompletedProcess((), 0, "")


runs.say = lambda line: None
runs.enter = enter
runs.hardware_of = lambda *_: "cpu"
runs.make_environments = lambda releases, *_: {
    release: Environment(versions=versions) for release in releases
}
runs.run_cells(list(cells.values()), runs.Work(results, jobs=2))
"""


@pytest.fixture
def run(tmp_path):
    """Start a run, kill it after so many cells; return the cells that it did."""

    def started(kill_after=None):
        command = [sys.executable, "-c", RUN, str(tmp_path), *RELEASES]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            done = []
            for line in process.stdout:
                done.append(line.strip())
                if len(done) == kill_after:
                    process.kill()
        return done, process.returncode

    return started


def test_nothing_is_lost_and_only_the_rest_runs_again(run, tmp_path, caplog):
    everything = {cell.id for cell in load_matrix().cells(RELEASES)}
    generator, done = random.Random(1), set()
    most = len(everything) // (KILLS + 1)
    for _ in range(KILLS):
        before = {record.cell for record in read_all(tmp_path)}
        ran, status = run(kill_after=generator.randint(1, most))
        assert status == -9
        assert before.isdisjoint(ran)
        done |= {*ran}
        recorded = {record.cell for record in read_all(tmp_path)}
        assert before | done <= recorded
    ran, status = run()
    assert status == 0
    assert {record.cell for record in read_all(tmp_path)} == everything
    assert recorded.isdisjoint(ran)
    # Each was written once; only the cell that was written as the kill came may be unsaid.
    assert len(everything - done - {*ran}) <= KILLS * len(RELEASES)
    assert caplog.records == []
    assert not list(tmp_path.glob("*.damaged"))
