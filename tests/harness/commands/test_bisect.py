from __future__ import annotations

import pytest
from packaging.version import Version

from harness.__main__ import main
from harness.commands import bisect
from harness.records import Store
from harness.records.merge import write

INDEX = ["5.20.2", "5.21.0", "5.21.0rc1", "5.21.1", "5.22.0", "5.23.0", "4.57.0"]


@pytest.fixture
def bisecting(cell_record, tmp_path, monkeypatch):
    """Bisect llama with sdpa, good on 5.20.2 and bad on 5.23.0 on record; it breaks in `broken`."""

    def made(release, bad, **changes):
        probes = {"cache_keyword": "cache" if bad else "past_key_values"}
        status = {"status": "fail", "message": "boom"} if bad else {}
        return cell_record(release=release, probes=probes, **status, **changes)

    def run(broken):
        write([made("5.20.2", False), made("5.23.0", True)], tmp_path)

        def run_cells(cells, work):
            ((release, requirement),) = work.candidates.items()
            assert requirement == f"packages of {release}"
            assert [cell.id for cell in cells] == [f"llama@{release}/sdpa/cpu"]
            run_cells.releases.append(release)
            bad = Version(release) >= Version(broken)
            versions = {"transformers": release}
            Store(work.results, release).put([made(release, bad, versions=versions)])

        def of_its_time(release, folder):
            assert folder == tmp_path / "environments"
            return "2026-10-26", f"packages of {release}"

        run_cells.releases = []
        monkeypatch.setattr(bisect, "run_cells", run_cells)
        monkeypatch.setattr(bisect, "ask_index", lambda pre: INDEX)
        monkeypatch.setenv("RABBITLLM_ENVIRONMENTS", str(tmp_path / "environments"))
        monkeypatch.setattr(bisect, "of_its_time", of_its_time)
        return main(["bisect", "llama/sdpa", "--results", str(tmp_path)]), run_cells.releases

    return run


def test_the_release_is_found_between_the_ends_on_record(bisecting, capsys):
    status, asked = bisecting("5.21.0rc1")
    assert status == 0
    assert asked[:2] == ["5.20.2", "5.23.0"]
    assert {*asked} <= {*INDEX}
    printed = capsys.readouterr().out
    assert "between: 5.21.0rc1, 5.21.0, 5.21.1, 5.22.0\n" in printed
    assert "last good: 5.20.2, first bad: 5.21.0rc1 (fail)" in printed
    assert "probe cache_keyword: past_key_values -> cache" in printed
    assert "packages: transformers 5.20.2 -> 5.21.0rc1" in printed
    assert "cause: boom" in printed


def test_the_records_of_the_table_stay_as_they_are(bisecting, tmp_path):
    bisecting("5.22.0")
    assert sorted(path.name for path in tmp_path.glob("*.jsonl")) == [
        "transformers-5.20.2.jsonl",
        "transformers-5.23.0.jsonl",
    ]


def test_a_release_that_works_with_the_packages_of_its_time_is_not_blamed(bisecting, capsys):
    status, asked = bisecting("5.99")
    assert status == 1
    assert asked == ["5.20.2", "5.23.0"]
    assert "5.23.0 works with the packages of its time" in capsys.readouterr().out


def test_without_a_bad_record_there_is_nothing_to_bisect(cell_record, tmp_path, capsys):
    write([cell_record()], tmp_path)
    assert main(["bisect", "llama/sdpa", "--results", str(tmp_path)]) == 2
    assert "no release is bad (5.0.0 pass)" in capsys.readouterr().err
