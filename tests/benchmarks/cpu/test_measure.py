from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.cpu import measure as cpu
from benchmarks.cpu.cgroup import CgroupError, find_parent
from benchmarks.cpu.child import SCENARIOS
from benchmarks.peers.process import figures_of
from tests.patience import PATIENCE

TOKENS = [3, 4, 5]
LIMITED: list[dict[str, Any]] = [
    {"scenario": "stock", "peer": "stock", "tokens_per_second": 0.25, "tokens": TOKENS},
    {"scenario": "accelerate-disk", "peer": "a", "tokens_per_second": 0.3, "tokens": TOKENS},
    {
        "scenario": "rabbitllm",
        "peer": "rabbitllm",
        "tokens_per_second": 0.75,
        "disk_gb_per_second": 1.44,
        "tokens": TOKENS,
    },
    {
        "scenario": "rabbitllm-lossless",
        "peer": "rabbitllm-lossless",
        "tokens_per_second": 0.9,
        "disk_gb_per_second": 1.3,
        "tokens": TOKENS,
    },
    {"scenario": "turns", "disk_gb_per_second": 1.44, "share": 0.96, "tokens": TOKENS[:2]},
]
FITS: dict[str, Any] = {
    "scenario": "fits",
    "tokens_per_second": {"stock": 4.0, "rabbitllm": 4.2},
    "ratio": 1.05,
    "tokens": {"stock": [1, 2], "rabbitllm": [1, 2]},
}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    records = [record | {"killed": 0, "peak_bytes": 1_800_000_000} for record in LIMITED]
    records.append(dict(FITS))
    monkeypatch.setattr(cpu, "measure_all", lambda *_: iter(records))
    return records


def arguments(tiny: Path, out: Path) -> list[str]:
    return ["--folder", str(tiny), "--shape", "tiny", "--out", str(out)]


def test_the_ratio_is_to_the_better_one_and_the_median_of_the_rounds() -> None:
    assert cpu.summarise([*LIMITED, FITS]) == pytest.approx(
        {
            "rabbitllm, ratio to the better of stock and accelerate": 2.5,
            "rabbitllm-lossless, ratio to the better of stock and accelerate": 3.0,
            "share of direct reads": 0.96,
            "ratio to stock, all in memory": 1.05,
        }
    )


def test_what_failed_takes_no_part() -> None:
    failed = [{"scenario": "accelerate-disk", "failed": "ended with -9"}]
    summary = cpu.summarise([LIMITED[0], *failed, *LIMITED[2:]])
    assert summary["rabbitllm, ratio to the better of stock and accelerate"] == pytest.approx(3)
    assert cpu.summarise([{"scenario": "rabbitllm", "failed": "x"}, FITS]).keys() == {
        "ratio to stock, all in memory"
    }


def test_lines_and_tables_are_written(
    measured: list[dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    out = tmp_path / "cpu.jsonl"
    assert cpu.main(arguments(tiny, out)) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["scenario"] for line in lines] == [record["scenario"] for record in measured]
    assert all(line["hardware"].startswith("cpu ") for line in lines)
    assert all(line["engine"] and line["versions"]["torch"] for line in lines)
    text = out.with_suffix(".md").read_text()
    assert "rabbitllm, fits" in text
    assert ">= 2.2" in text


@pytest.mark.parametrize("place", [2, 3, 5])
def test_tokens_that_differ_leave_no_table(
    measured: list[dict[str, Any]], tiny: Path, tmp_path: Path, place: int
) -> None:
    wrong = {2: [3, 4, 6], 3: [3, 5, 5], 5: {"stock": [1, 2], "rabbitllm": [1, 3]}}
    measured[place]["tokens"] = wrong[place]
    assert cpu.main(arguments(tiny, tmp_path / "cpu.jsonl")) == 1
    assert not (tmp_path / "cpu.md").exists()


def test_a_killed_process_is_shown_and_is_a_failure(
    measured: list[dict[str, Any]], tiny: Path, tmp_path: Path
) -> None:
    measured[1] = {"scenario": "accelerate-disk", "failed": "ended with -9: x\ny", "killed": 1}
    assert cpu.main(arguments(tiny, tmp_path / "cpu.jsonl")) == 1
    assert "ended with -9: x" in (tmp_path / "cpu.md").read_text()


def test_a_machine_without_cgroups_says_what_is_needed(
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse(*_: Any) -> None:
        raise CgroupError("needs root")

    monkeypatch.setattr(cpu, "limited", refuse)
    assert cpu.main(arguments(tiny, tmp_path / "cpu.jsonl")) == 1
    assert "needs root" in capsys.readouterr().err


def test_files_leave_the_page_cache(tmp_path: Path) -> None:
    mounts = {Path(disk.mountpoint): disk.fstype for disk in psutil.disk_partitions(all=True)}
    if next(mounts[folder] for folder in tmp_path.parents if folder in mounts) == "tmpfs":
        pytest.skip("files of a tmpfs lie nowhere else")
    file = tmp_path / "weights"
    file.write_bytes(bytes(1 << 20))
    assert cpu.cached_bytes([file]) == 1 << 20
    cpu.forget([file])
    assert cpu.cached_bytes([file]) == 0


@pytest.mark.parametrize(("nbytes", "killed"), [(1 << 20, 0), (1 << 28, 1)])
def test_a_process_that_takes_more_than_its_group_may_is_killed_and_counted(
    tmp_path: Path, nbytes: int, killed: int
) -> None:
    take = f"import pathlib, sys; bytearray(b'x') * {nbytes}"
    write = "pathlib.Path(sys.argv[2]).write_text('{}')"

    def run(prefix: Sequence[str]) -> dict[str, Any]:
        return figures_of([*prefix, sys.executable, "-c", f"{take}; {write}"], PATIENCE)

    try:
        parent, _ = find_parent(Path("/proc/self/cgroup").read_text(), Path("/sys/fs/cgroup"))
    except CgroupError as error:
        pytest.skip(str(error))
    if not os.access(parent, os.W_OK):
        pytest.skip(f"{parent} is not ours")
    record = cpu.in_group("take", run, tmp_path, 1 << 26)
    assert record["killed"] == killed
    assert ("failed" in record) == bool(killed)
    assert 0 < record["peak_bytes"] <= 1 << 26
    assert not (parent / f"rabbitllm-benchmark-{os.getpid()}").exists()


def test_scenarios_measure(tiny: Path) -> None:
    turns = SCENARIOS["turns"](tiny)
    assert min(turns["shares"]) <= turns["share"] <= max(turns["shares"])
    assert turns["gb_per_second"] > 0
    both = SCENARIOS["fits"](tiny)
    assert both["tokens"]["stock"] == both["tokens"]["rabbitllm"]
    assert min(both["ratios"]) <= both["ratio"] <= max(both["ratios"])
    assert both["ratio_of_fastest_steps"] > 0
