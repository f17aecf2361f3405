from __future__ import annotations

import re

import pytest

from harness.__main__ import main
from harness.commands import matrix
from harness.records.provenance import cores
from harness.running.outcome import Outcome
from harness.running.run import Work


@pytest.fixture
def measured(monkeypatch):
    """Record what would be measured instead of measuring it."""
    calls = []

    def run_cells(cells, work):
        calls.append((cells, work))
        return Outcome(len(cells))

    monkeypatch.setattr(matrix, "run_cells", run_cells)
    monkeypatch.setattr(matrix.boundaries, "measure", lambda *_: Outcome(0))
    monkeypatch.setattr(matrix, "render_reports", lambda reports: [reports / "compatibility.md"])
    return calls


def test_the_default_is_the_sentinels_with_eager_and_sdpa_on_a_cpu(measured):
    assert main(["matrix"]) == 0
    ((cells, work),) = measured
    assert {cell.backend.id for cell in cells} == {"eager", "sdpa"}
    assert {cell.device for cell in cells} == {"cpu"}
    assert {cell.release for cell in cells} >= {"5.0.0"}
    assert work == Work(matrix.ROOT / "reports" / "results", cores(), spot_check=True)


def test_a_selection_reaches_the_cells_and_their_command(measured, tmp_path):
    selection = ["--releases", "oldest", "--arch", "llama, qwen2", "--attn", "sdpa"]
    assert main(["matrix", *selection, "--reports", str(tmp_path)]) == 0
    ((cells, work),) = measured
    assert [cell.id for cell in cells] == ["llama@5.0.0/sdpa/cpu", "qwen2@5.0.0/sdpa/cpu"]
    assert work.results == tmp_path / "results"


def test_a_problem_makes_the_exit_status_1_and_is_printed(measured, monkeypatch, capsys):
    outcome = Outcome(1, problems=["llama@5.0.0/sdpa/cpu: fail: why"])
    monkeypatch.setattr(matrix, "run_cells", lambda *_: outcome)
    assert main(["matrix", "--releases", "oldest"]) == 1
    printed = capsys.readouterr().out
    assert "NOT AS EXPECTED  llama@5.0.0/sdpa/cpu: fail: why" in printed
    assert "1 not as expected" in printed


def test_what_lies_between_is_measured_after_the_run_and_its_problems_count(
    measured, monkeypatch, capsys
):
    between = []

    def measure(cells, rows, work):
        between.append((cells, work))
        return Outcome(1, problems=["gemma2@5.21.0/sdpa/cpu: fail: why"])

    monkeypatch.setattr(matrix.boundaries, "measure", measure)
    assert main(["matrix", "--releases", "oldest"]) == 1
    assert between == measured
    printed = capsys.readouterr().out
    assert "NOT AS EXPECTED  gemma2@5.21.0/sdpa/cpu: fail: why" in printed
    assert "Where ranges end: 1 cell in 0 s: " in printed


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (["--releases", "5.99"], r"Unknown release '5.99'. matrix/releases.toml has 5\.0\.0"),
        (["--arch", "lama"], "Unknown architecture 'lama'. Available: llama"),
        (["--attn", "flash"], "Unknown attention backend 'flash'. Available: eager"),
        (["--arch", ","], "holds no cell"),
    ],
)
def test_a_name_that_is_not_there_is_an_error_with_the_alternatives(
    measured, capsys, selection, message
):
    assert main(["matrix", *selection]) == 2
    assert not measured
    assert re.search(message, capsys.readouterr().err)


def test_shards_together_are_the_run(measured):
    selection = ["--releases", "5.0,newest", "--arch", "llama,qwen2", "--attn", "sdpa"]
    for shard in ([], ["--shard", "1/2"], ["--shard", "2/2"]):
        assert main(["matrix", *selection, *shard]) == 0
    whole, first, second = (cells for cells, _ in measured)
    assert [*first, *second] == whole


def test_a_gpu_runs_one_release_at_a_time(measured):
    main(["matrix", "--releases", "oldest", "--device", "cuda"])
    ((_, work),) = measured
    assert work.jobs == 1


def test_what_is_no_shard_is_refused_with_an_example(measured, capsys):
    assert main(["matrix", "--shard", "9/8"]) == 2
    assert "'9/8' is no shard; 3/8 is the third of eight" in capsys.readouterr().err
    assert measured == []
