from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import pytest

from harness.matrix import Architecture, Backend, Cell
from harness.records import Store
from harness.records.blank import blank
from harness.running import run as runs
from harness.running.environments import Environment
from harness.running.run import Work

VERSIONS = {"python": "3.11.7", "transformers": "5"}
LLAMA = Architecture("llama", "Llama 2 / 3", "RabbitLLMLlama2", "LlamaForCausalLM", "llama")
CELLS = [Cell(LLAMA, release, Backend("sdpa", ("cpu",))) for release in ("5.0.0", "5.1.0")]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Measure CELLS, where environments fail for `reasons` and runs record `statuses`."""

    def measure(reasons=(), statuses=(), exit_status=0, **options):
        entered = []

        def enter(release, candidates, *arguments, surroundings):
            entered.append(arguments[arguments.index("--cells") + 1])
            if release in statuses:
                made = blank(CELLS[0], statuses[release], "message\nmore")
                changed = {"release": release, "versions": VERSIONS, "hardware": "cpu"}
                Store(tmp_path, release).put([replace(made, **changed)])
            return subprocess.CompletedProcess((), exit_status, "what pytest said")

        def make_environments(releases, *_):
            made = {release: Environment(versions=VERSIONS) for release in releases}
            return made | {
                release: Environment(reason) for release, reason in dict(reasons).items()
            }

        monkeypatch.setattr(runs, "make_environments", make_environments)
        monkeypatch.setattr(runs, "hardware_of", lambda *_: "cpu")
        monkeypatch.setattr(runs, "enter", enter)
        monkeypatch.setattr(runs, "load_expected", tuple)
        measure.outcome = runs.run_cells(CELLS, Work(tmp_path, **options))
        measure.entered = entered
        return measure.outcome.problems

    return measure


def test_a_run_in_which_all_is_well_has_no_problems(run, capsys):
    assert run(statuses={"5.0.0": "pass", "5.1.0": "unsupported"}) == []
    printed = capsys.readouterr().out
    assert "2 of 2 cells to run" in printed
    assert re.search(r"\[1/2\] transformers 5\.0\.0: 1 pass in \d+ s", printed)
    assert re.search(r"\[2/2\] transformers 5\.1\.0: 1 unsupported in \d+ s", printed)


def test_a_second_run_enters_no_environment(run, capsys):
    run(statuses={"5.0.0": "pass", "5.1.0": "pass"})
    assert run() == []
    assert run.entered == []
    assert "0 of 2 cells to run" in capsys.readouterr().out
    assert [record.cell for record in run.outcome.kept] == [cell.id for cell in CELLS]
    assert (run.outcome.total, run.outcome.fresh) == (2, [])


def test_where_all_records_are_current_a_cell_of_the_last_release_is_compared(run, capsys):
    run(statuses={"5.0.0": "pass", "5.1.0": "pass"})
    assert run(statuses={"5.1.0": "pass"}, spot_check=True) == []
    assert run.entered == ["llama@5.1.0/sdpa/cpu"]
    printed = capsys.readouterr().out
    assert "llama@5.1.0/sdpa/cpu: pass, as recorded on 20" in printed
    assert "to measure all again: --force" in printed
    assert [len(part) for part in (run.outcome.fresh, run.outcome.kept)] == [1, 1]


def test_a_cell_that_is_not_as_recorded_is_a_problem(run):
    run(statuses={"5.0.0": "pass", "5.1.0": "reference-broken"})
    (problem, *_) = run(statuses={"5.1.0": "pass"}, spot_check=True)
    assert problem.startswith("llama@5.1.0/sdpa/cpu: pass, where reference-broken was recorded")


def test_a_run_that_has_something_to_do_compares_nothing(run):
    assert run(statuses={"5.0.0": "pass", "5.1.0": "pass"}, spot_check=True) == []
    assert run.entered == ["llama@5.0.0/sdpa/cpu", "llama@5.1.0/sdpa/cpu"]


def test_a_second_run_that_is_forced_runs_all(run):
    for _ in range(2):
        run(statuses={"5.0.0": "pass", "5.1.0": "pass"}, force=True, jobs=2)
        assert sorted(run.entered) == ["llama@5.0.0/sdpa/cpu", "llama@5.1.0/sdpa/cpu"]


def test_a_failure_that_is_not_run_again_is_still_a_problem(run):
    run(statuses={"5.0.0": "fail", "5.1.0": "pass"})
    (problem,) = run()
    assert run.entered == []
    assert [record.status for record in run.outcome.kept] == ["fail", "pass"]
    assert problem.startswith("llama@5.0.0/sdpa/cpu: fail")


@pytest.mark.parametrize("status", ["fail", "flaky", "crash", "degraded", "timeout"])
def test_an_unexpected_status_is_a_problem_with_the_line_that_runs_it_again(run, status):
    (problem,) = run(statuses={"5.0.0": "pass", "5.1.0": status})
    assert problem.startswith(f"llama@5.1.0/sdpa/cpu: {status}: message\n")
    assert problem.endswith(
        "tox -e matrix -- --releases 5.1.0 --arch llama --attn sdpa --device cpu --force"
    )


def test_a_release_without_an_environment_costs_its_cells_alone(run, tmp_path):
    (problem,) = run(reasons={"5.0.0": "no such version"}, statuses={"5.1.0": "pass"})
    assert "llama@5.0.0/sdpa/cpu: env-error: no such version" in problem
    (record,) = Store(tmp_path, "5.0.0").read()
    assert (record.status, record.message) == ("env-error", "no such version")
    assert Store(tmp_path, "5.1.0").read()[0].status == "pass"
    assert [record.status for record in run.outcome.fresh] == ["env-error", "pass"]
    assert run.outcome.kept == []


def test_a_lost_cell_is_a_problem(run):
    (problem,) = run(statuses={"5.0.0": "pass"})
    assert "llama@5.1.0/sdpa/cpu: lost" in problem


@pytest.mark.parametrize("exit_status", [1, 3])
def test_a_run_that_fails_is_a_problem_even_if_all_records_are_fine(run, exit_status):
    problems = run(statuses={"5.0.0": "pass", "5.1.0": "pass"}, exit_status=exit_status)
    assert problems == [
        f"transformers {release}: the run of its cells ended with {exit_status}\nwhat pytest said"
        for release in ("5.0.0", "5.1.0")
    ]


def test_a_failing_cell_explains_the_exit_status(run):
    problems = run(statuses={"5.0.0": "fail", "5.1.0": "fail"}, exit_status=1)
    assert [problem.split(":")[0] for problem in problems] == [
        "llama@5.0.0/sdpa/cpu",
        "llama@5.1.0/sdpa/cpu",
    ]
