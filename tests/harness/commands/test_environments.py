from __future__ import annotations

import pytest

from harness.__main__ import main
from harness.commands import environments
from harness.matrix import load_surroundings
from harness.records.merge import write
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
    monkeypatch.setattr(environments, "rendered", lambda reports: [f"{reports}/a.md"])
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


def test_a_folder_without_records_of_the_matrix_gets_no_report(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(environments, "run_cells", lambda cells, work: Outcome(len(cells)))
    assert main(["environments", "--only", "lowest", "--reports", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert f"No report: {tmp_path / 'results'} has no records of the matrix.\n" in printed
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_records_gets_its_reports(monkeypatch, tmp_path, capsys, cell_record):
    monkeypatch.setattr(environments, "run_cells", lambda cells, work: Outcome(len(cells)))
    write([cell_record()], tmp_path / "results")
    assert main(["environments", "--only", "lowest", "--reports", str(tmp_path)]) == 0
    assert f"{tmp_path / 'compatibility.md'}\n" in capsys.readouterr().out
