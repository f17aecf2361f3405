from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import pytest

from harness.__main__ import main
from harness.judging import snapshots
from harness.records import CheckResult, Store
from harness.records.merge import write
from harness.stock import store as snapshots_of
from harness.upgrading import retry


@pytest.fixture
def results(cell_record, tmp_path):
    """Return a folder in which llama with sdpa fails from 5.1.0 on."""
    failed = {"prefill_parity": CheckResult("fail", message="boom")}
    write(
        [
            cell_record(release="5.0.0"),
            cell_record(release="5.0.0", backend="eager"),
            cell_record(release="5.1.0", status="fail", message="boom", checks=failed),
            cell_record(release="5.1.0", backend="eager"),
        ],
        tmp_path / "results",
    )
    return tmp_path / "results"


def test_two_releases_of_one_folder(results, capsys):
    assert main(["diff", "5.0.0", "5.1.0", "--results", str(results)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("5.0.0 -> 5.1.0: 1 regressed, 1 same\n")
    assert "llama@5.1.0/sdpa/cpu\n      pass, now fail: boom" in printed


def test_releases_with_snapshots_are_compared_as_stock_too(results, capsys):
    said = {"5.0.0": "(self, cache_position)", "5.1.0": "(self)"}
    for release, signature in said.items():
        facts = {"questions: digest": "abc", "llama: layer L": signature}
        snapshots_of.write(release, facts, results.parent / "stock")
    main(["diff", "5.0.0", "5.1.0", "--results", str(results)])
    printed = capsys.readouterr().out
    assert printed.endswith(
        "stock transformers 5.0.0 -> 5.1.0: 1 difference\n"
        "  llama: layer L: without cache_position\n"
    )
    main(["diff", "5.0.0", "5.1.0", "--results", str(results), "--format", "json"])
    json.loads(capsys.readouterr().out)


def test_two_folders_and_the_other_way_round_nothing_is_worse(
    results, tmp_path, cell_record, capsys
):
    write([cell_record(release="5.2.0")], tmp_path / "other" / "results")
    assert main(["diff", str(tmp_path / "other"), str(tmp_path / "other")]) == 0
    assert main(["diff", "5.1.0", "5.0.0", "--results", str(results), "--format", "json"]) == 0
    out = capsys.readouterr().out
    found = json.loads(out[out.index("{") :])
    assert [change["kind"] for change in found["changes"]] == ["fixed", "same"]


def test_a_release_beside_a_folder(results, tmp_path, cell_record):
    write(
        [cell_record(release="5.2.0"), cell_record(release="5.2.0", backend="eager")],
        tmp_path / "b",
    )
    assert main(["diff", "5.0.0", str(tmp_path / "b"), "--results", str(results)]) == 0


@pytest.mark.parametrize("name", ["5.9.9", "nowhere", "git:no-such-revision"])
def test_what_is_no_side_is_an_error_of_one_line(name, results, capsys):
    assert main(["diff", name, "5.0.0", "--results", str(results)]) == 2
    error = capsys.readouterr().err
    assert name.removeprefix("git:") in error
    assert error.count("\n") == 1


def test_a_folder_without_records_is_an_error(tmp_path, capsys):
    assert main(["diff", str(tmp_path), str(tmp_path)]) == 2
    assert "holds no records" in capsys.readouterr().err


def test_a_revision_is_what_was_committed_there(cell_record, tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "ROOT", tmp_path)
    folder = tmp_path / snapshots.COMMITTED
    write([cell_record()], folder)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    write([replace(cell_record(), status="fail")], folder)
    assert [record.status for record in snapshots.load_side("git:HEAD", folder).records] == ["pass"]


@pytest.mark.parametrize(
    ("second", "status", "kind"), [("pass", 0, "spurious"), ("fail", 1, "regressed")]
)
def test_a_retry_tells_flakes(second, status, kind, results, monkeypatch, capsys):
    """What passes when run again did not regress."""

    def run_cells(cells, work):
        assert [cell.id for cell in cells] == ["llama@5.1.0/sdpa/cpu"]
        assert work.force
        assert work.results != results
        (record,) = (r for r in Store(results, "5.1.0").read() if r.backend == "sdpa")
        Store(work.results, "5.1.0").put([replace(record, status=second)])
        print("progress")

    monkeypatch.setattr(retry, "run_cells", run_cells)
    monkeypatch.setattr(retry, "engine_hash", lambda: "")
    monkeypatch.setattr(retry, "check_hash", lambda cell: "")
    arguments = ["5.0.0", "5.1.0", "--results", str(results), "--retry", "--format", "json"]
    assert main(["diff", *arguments]) == status
    found = json.loads(capsys.readouterr().out)
    assert found["changes"][0]["kind"] == kind
    assert "when run again" in found["changes"][0]["why"]


def test_a_retry_with_another_engine_is_refused(results, capsys):
    assert main(["diff", "5.0.0", "5.1.0", "--results", str(results), "--retry"]) == 2
    assert "another engine or other checks" in capsys.readouterr().err
