from __future__ import annotations

import pytest

from harness.__main__ import main
from harness.commands import environments
from harness.matrix import load_surroundings
from harness.running.outcome import Outcome


@pytest.fixture
def measured(monkeypatch):
    """Record what would be measured instead of measuring it."""
    calls = []

    def run_cells(cells, work):
        calls.append((cells, work))
        problems = ["llama@5.0.0/sdpa/cpu: fail: why\n    again"] if len(calls) == 2 else []
        return Outcome(len(cells), problems=problems)

    monkeypatch.setattr(environments, "run_cells", run_cells)
    monkeypatch.setattr(environments, "render_reports", lambda reports: [reports / "a.md"])
    return calls


def test_each_row_runs_its_cells_in_its_own_environment_and_folder(measured, tmp_path, capsys):
    assert main(["environments", "--reports", str(tmp_path), "--force"]) == 1
    rows = load_surroundings()
    assert len(measured) == len(rows)
    for row, (cells, work) in zip(rows, measured, strict=True):
        assert {cell.release for cell in cells} == {row.release}
        assert {cell.architecture.id for cell in cells} == set(row.architectures)
        assert (work.surroundings, work.results) == (row.id, tmp_path / "environments" / row.id)
        assert work.force
    printed = capsys.readouterr().out
    assert "NOT AS EXPECTED  llama@5.0.0/sdpa/cpu: fail: why\n" in printed
    total = sum(len(cells) for cells, _ in measured)
    assert f"{total} cells in 0 s" in printed


def test_one_row_can_be_chosen(measured):
    assert main(["environments", "--only", "lowest"]) == 0
    ((_, work),) = measured
    assert work.surroundings == "lowest"


def test_a_row_that_is_not_there_is_an_error_with_the_alternatives(measured, capsys):
    assert main(["environments", "--only", "oldest"]) == 2
    assert "Unknown environment 'oldest'. Available: lowest" in capsys.readouterr().err
    assert not measured
