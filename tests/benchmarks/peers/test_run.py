from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import run as peers
from benchmarks.peers.child import measure_peer
from benchmarks.peers.process import ProcessError

NAMES = ("stock", "accelerate-disk", "rabbitllm", "rabbitllm-disk")


@pytest.fixture(scope="module")
def records(tiny: Path) -> dict[str, dict[str, Any]]:
    """Of each peer that this environment can run; in one process, which is quicker."""
    return {
        name: measure_peer(name, tiny, "cpu", 4) | {"model": "tiny", "hardware": "cpu"}
        for name in NAMES
    }


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, records: dict[str, dict[str, Any]]) -> None:
    monkeypatch.setattr(peers, "run_peer", lambda name, *_: records[name])


def arguments(out: Path, *names: str) -> list[str]:
    return ["--folder", "unused", "--out", str(out), "--peers", ",".join(names)]


@pytest.mark.parametrize("name", NAMES)
def test_a_peer_measures_its_tokens_and_steps(
    name: str, records: dict[str, dict[str, Any]]
) -> None:
    record = records[name]
    assert record["tokens"] == records["stock"]["tokens"]
    assert len(record["tokens"]) == 4
    assert len(record["step_seconds"]) == 3
    assert record["tokens_per_second"] == pytest.approx(3 / sum(record["step_seconds"]))
    assert {"torch", "transformers", "accelerate"} <= record["versions"].keys()


def test_what_streams_is_counted(records: dict[str, dict[str, Any]], tiny: Path) -> None:
    weights = sum(file.stat().st_size for file in tiny.glob("*.safetensors"))
    assert 0.5 * weights < records["rabbitllm-disk"]["bytes_from_disk"] < 1.5 * weights
    assert records["rabbitllm"]["bytes_from_disk"] == 0
    assert "bytes_from_disk" not in records["stock"]


@pytest.mark.usefixtures("in_process")
def test_a_comparison_is_written_as_lines_and_as_a_table(tmp_path: Path) -> None:
    out = tmp_path / "peers.jsonl"
    assert peers.main(arguments(out, *NAMES)) == 0
    assert [json.loads(line)["peer"] for line in out.read_text().splitlines()] == list(NAMES)
    assert out.with_suffix(".md").read_text().count("\n|") == len(NAMES) + 1


@pytest.mark.usefixtures("in_process")
def test_tokens_that_differ_leave_no_table_and_no_older_one(
    tmp_path: Path,
    records: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "peers.jsonl"
    out.with_suffix(".md").write_text("an older table")
    wrong = records["rabbitllm"] | {"tokens": [0, 0, 0, 0]}
    monkeypatch.setitem(records, "rabbitllm", wrong)
    assert peers.main(arguments(out, "stock", "rabbitllm")) == 1
    assert not out.with_suffix(".md").exists()
    assert "no table" in capsys.readouterr().err


@pytest.mark.usefixtures("in_process")
def test_a_peer_that_fails_is_named_and_the_others_are_compared(
    tmp_path: Path, records: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, *_: Any) -> dict[str, Any]:
        if name == "accelerate-disk":
            raise ProcessError("ended with 1: no room")
        return records[name]

    monkeypatch.setattr(peers, "run_peer", run)
    out = tmp_path / "peers.jsonl"
    assert peers.main(arguments(out, "stock", "accelerate-disk", "rabbitllm")) == 1
    assert (
        "Not measured: accelerate-disk ended with 1: no room" in out.with_suffix(".md").read_text()
    )


@pytest.mark.usefixtures("in_process")
def test_one_peer_is_no_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert peers.main(arguments(tmp_path / "peers.jsonl", "stock")) == 1
    assert "two peers" in capsys.readouterr().err
    assert not (tmp_path / "peers.md").exists()


@pytest.mark.parametrize(
    ("name", "says"), [("nobody", "no peer nobody"), ("accelerate-cpu", "does not run on cpu")]
)
def test_a_peer_that_cannot_run_is_refused_before_anything_runs(
    tmp_path: Path, name: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        peers.main(arguments(tmp_path / "peers.jsonl", "stock", name))
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_peers_run_end_to_end_in_processes_of_their_own(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "peers.jsonl"
    command = ["--folder", str(tiny), "--out", str(out), "--peers", "stock,rabbitllm"]
    assert peers.main([*command, "--new-tokens", "3"]) == 0
    assert "| rabbitllm" in out.with_suffix(".md").read_text()
