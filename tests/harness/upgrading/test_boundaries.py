from __future__ import annotations

from dataclasses import replace

import pytest

from harness.matrix import load_matrix
from harness.records import Store
from harness.records.blank import blank
from harness.records.store import BOUNDARIES
from harness.running.outcome import Outcome
from harness.running.run import Work
from harness.upgrading import boundaries

MATRIX = load_matrix()
INDEX = ["5.20.1", "5.20.2", "5.21.0", "5.21.1", "5.22.0", "5.22.1", "5.22.2"]
RELEASES = ["5.20.2", "5.21.1", "5.22.2"]


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Measure boundaries of llama and gemma2, of these statuses on `RELEASES`."""
    ran = []

    def run_cells(cells, work):
        ran.append((cells, work))
        return Outcome(len(cells), problems=["gemma2@5.21.0/sdpa/cpu: fail: why\n    again"])

    def measured(gemma2, index=INDEX, releases=RELEASES):
        def ask_index(pre):
            assert not pre
            if isinstance(index, Exception):
                raise index
            return index

        cells = MATRIX.cells(releases, ["llama", "gemma2"], ["sdpa"])
        results = tmp_path / "results"
        for cell in cells:
            own = gemma2[releases.index(cell.release)]
            status = own if cell.architecture.id == "gemma2" else "pass"
            Store(results, cell.release).put([blank(cell, status)])
        monkeypatch.setattr(boundaries, "ask_index", ask_index)
        monkeypatch.setattr(boundaries, "run_cells", run_cells)
        outcome = boundaries.measure(cells, MATRIX, Work(results, jobs=2, spot_check=True))
        return outcome, ran

    return measured


def test_the_releases_between_neighbours_of_different_statuses_are_measured(measure, tmp_path):
    outcome, ((cells, work),) = measure(["stock-wrong", "reference-broken", "reference-broken"])
    assert [cell.id for cell in cells] == ["gemma2@5.21.0/sdpa/cpu"]
    assert work.results == tmp_path / BOUNDARIES
    assert work.candidates == {"5.21.0": "transformers==5.21.0"}
    assert (work.jobs, work.spot_check) == (2, False)
    # No command runs a release that is no row of the matrix.
    assert outcome.problems == ["gemma2@5.21.0/sdpa/cpu: fail: why"]


def test_several_changes_are_measured_release_by_release(measure):
    _, ((cells, _),) = measure(["pass", "fail", "pass"])
    assert [cell.release for cell in cells] == ["5.21.0", "5.22.0", "5.22.1"]


@pytest.mark.parametrize("statuses", [["pass"] * 3, ["pass", "flaky", "pass"]])
def test_where_nothing_changes_for_certain_the_index_is_not_asked(measure, statuses):
    outcome, ran = measure(statuses, index=AssertionError("asked"))
    assert (outcome, ran) == (Outcome(0), [])


def test_releases_that_are_no_neighbours_in_the_matrix_say_nothing(measure):
    outcome, ran = measure(["pass", "fail"], releases=["5.20.2", "5.22.2"])
    assert (outcome, ran) == (Outcome(0), [])


def test_without_an_index_a_line_says_where_ranges_end(measure, capsys):
    outcome, ran = measure(["pass", "fail", "fail"], index=ValueError("no network"))
    assert (outcome, ran) == (Outcome(0), [])
    said = capsys.readouterr().out
    assert said == "Ranges end at the releases that were measured before: no network\n"


def test_neighbours_with_nothing_between_them_need_no_run(measure):
    outcome, ran = measure(["pass", "fail", "fail"], index=RELEASES)
    assert (outcome, ran) == (Outcome(0), [])


def test_cells_of_another_selection_do_not_count():
    cells = MATRIX.cells(RELEASES, ["llama"], ["sdpa"])
    others = MATRIX.cells(RELEASES, ["gemma2"], ["sdpa"])
    changed = [
        replace(blank(cell, "pass"), status=status)
        for cell, status in zip(others, ["pass", "fail", "fail"], strict=True)
    ]
    assert boundaries.boundaries(cells, changed, RELEASES) == []
    (found,) = boundaries.boundaries(others, changed, RELEASES)
    assert (found.older, found.newer) == ("5.20.2", "5.21.1")
