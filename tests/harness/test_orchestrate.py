from __future__ import annotations

import json
import subprocess

import pytest

from harness import orchestrate
from harness.cells import Architecture, Backend, Cell, Matrix, Release
from harness.results import Record, Store


@pytest.fixture
def matrix():
    versions = ("5.0.0", "5.2.0", "5.2.1", "5.20.2", "5.23.0")
    rows = tuple(Release(version, sentinel=version in {"5.0.0", "5.23.0"}) for version in versions)
    return Matrix(architectures=(), releases=rows, backends=())


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("all", ["5.0.0", "5.2.0", "5.2.1", "5.20.2", "5.23.0"]),
        ("sentinel", ["5.0.0", "5.23.0"]),
        ("oldest,newest", ["5.0.0", "5.23.0"]),
        ("5.2", ["5.2.1"]),
        ("5.2.0", ["5.2.0"]),
        ("5.20", ["5.20.2"]),
        ("5", ["5.23.0"]),
        (" 5.23 , 5.0,5.0.0", ["5.0.0", "5.23.0"]),
    ],
)
def test_a_selection_names_releases_in_the_order_of_the_table(matrix, text, chosen):
    assert orchestrate.select_releases(text, matrix) == chosen


@pytest.mark.parametrize("text", ["5.99", "5.0.0,latest", "5.2.", ".2"])
def test_a_release_that_is_not_there_is_an_error_naming_those_that_are(matrix, text):
    with pytest.raises(ValueError, match=r"Unknown release .*5\.0\.0, 5\.2\.0.*sentinel"):
        orchestrate.select_releases(text, matrix)


def test_an_empty_selection_is_an_error(matrix):
    with pytest.raises(ValueError, match="no release"):
        orchestrate.select_releases(" ,", matrix)


@pytest.fixture
def tox_reports(monkeypatch):
    """Stand in for tox: write a report of environments, return an exit status."""

    def stand_in(environments, status=0):
        def run(command, **_):
            if environments is not None:
                path = command[command.index("--result-json") + 1]
                with open(path, "w", encoding="utf-8") as file:
                    json.dump({"testenvs": environments}, file)
            return subprocess.CompletedProcess(command, status)

        monkeypatch.setattr(orchestrate.subprocess, "run", run)

    return stand_in


def test_an_environment_that_cannot_be_made_gives_its_reason(tox_reports):
    fine = {"result": {"success": True}, "setup": [{"retcode": 0, "output": "", "err": ""}]}
    step = {"retcode": 1, "output": "", "err": "\x1b[31merror\x1b[39m: no version 5.99.0\n"}
    broken = {"result": {"success": False}, "setup": [*fine["setup"], step]}
    tox_reports({"tf5.0.0": fine, "tf5.99.0": broken, "lint": {}}, status=1)
    assert orchestrate.make_environments(["5.0.0", "5.99.0"]) == {
        "5.99.0": "error: no version 5.99.0"
    }


def test_an_environment_that_tox_does_not_mention_is_an_error(tox_reports):
    tox_reports({"tf5.0.0": {"result": {"success": True}}})
    with pytest.raises(orchestrate.OrchestrationError, match=r"tf5\.1\.0"):
        orchestrate.make_environments(["5.0.0", "5.1.0"])


def test_tox_without_a_report_is_an_error(tox_reports):
    tox_reports(None, status=2)
    with pytest.raises(orchestrate.OrchestrationError, match="exit status 2"):
        orchestrate.make_environments(["5.0.0"])


LLAMA = Architecture("llama", "Llama 2 / 3", "RabbitLLMLlama2", "LlamaForCausalLM", "llama")
CELLS = [Cell(LLAMA, release, Backend("sdpa", ("cpu",))) for release in ("5.0.0", "5.1.0")]


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Measure CELLS, where environments fail for `reasons` and runs record `statuses`."""

    def measure(reasons=(), statuses=(), exit_status=0):
        def run_cells(release, arguments):
            assert "--arch" in arguments
            if release in statuses:
                made = orchestrate.without_environment(CELLS[0], "message\nmore")
                changed = {"release": release, "status": statuses[release]}
                Store(tmp_path, release).put([Record(**(vars(made) | changed))])
            return exit_status

        monkeypatch.setattr(orchestrate, "make_environments", lambda releases: dict(reasons))
        monkeypatch.setattr(orchestrate, "run_cells", run_cells)
        return orchestrate.measure(CELLS, ["--arch", "llama"], tmp_path)

    return measure


def test_a_run_in_which_all_is_well_has_no_problems(run, capsys):
    assert run(statuses={"5.0.0": "pass", "5.1.0": "xfail"}) == []
    printed = capsys.readouterr().out
    assert "[1/2] transformers 5.0.0: 1 cells" in printed
    assert "1 xfail" in printed


@pytest.mark.parametrize("status", ["fail", "xpass", "flaky", "crash", "degraded", "timeout"])
def test_an_unexpected_status_is_a_problem_with_the_line_that_runs_it_again(run, status):
    (problem,) = run(statuses={"5.0.0": "pass", "5.1.0": status})
    assert problem.startswith(f"llama@5.1.0/sdpa/cpu: {status}: message\n")
    assert problem.endswith(
        "tox -e matrix -- --releases 5.1.0 --arch llama --attn sdpa --device cpu"
    )


def test_a_release_without_an_environment_costs_its_cells_alone(run, tmp_path):
    (problem,) = run(reasons={"5.0.0": "no such version"}, statuses={"5.1.0": "pass"})
    assert "llama@5.0.0/sdpa/cpu: env-error: no such version" in problem
    (record,) = Store(tmp_path, "5.0.0").read()
    assert (record.status, record.message) == ("env-error", "no such version")
    assert Store(tmp_path, "5.1.0").read()[0].status == "pass"


def test_a_lost_cell_is_a_problem(run):
    (problem,) = run(statuses={"5.0.0": "pass"})
    assert "llama@5.1.0/sdpa/cpu: lost" in problem


@pytest.mark.parametrize("exit_status", [1, 3])
def test_a_run_that_fails_is_a_problem_even_if_all_records_are_fine(run, exit_status):
    problems = run(statuses={"5.0.0": "pass", "5.1.0": "pass"}, exit_status=exit_status)
    assert problems == [
        f"transformers {release}: the run of its cells ended with {exit_status}"
        for release in ("5.0.0", "5.1.0")
    ]


def test_a_failing_cell_explains_the_exit_status(run):
    problems = run(statuses={"5.0.0": "fail", "5.1.0": "fail"}, exit_status=1)
    assert [problem.split(":")[0] for problem in problems] == [
        "llama@5.0.0/sdpa/cpu",
        "llama@5.1.0/sdpa/cpu",
    ]
