from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from benchmarks.streaming.measure import run_setup
from benchmarks.streaming.setups import DEVICE
from benchmarks.streaming.table import collect, render


def measured(folder: Path, tmp_path: Path, *setups: str) -> list[dict[str, Any]]:
    out = tmp_path / "results.jsonl"
    for setup in setups:
        run_setup(setup, folder, out)
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_what_fits_takes_turns_with_stock(folder: Path, tmp_path: Path) -> None:
    (record,) = measured(folder, tmp_path, "fits")
    turns = record["turns"]
    assert {name: len(rates) for name, rates in turns.items()} == {
        "tokens_per_second": 6,
        "stock_tokens_per_second": 6,
    }
    assert record["stock_tokens_per_second"] == pytest.approx(
        statistics.median(turns["stock_tokens_per_second"])
    )
    assert record["tiers"]["disk"] == 0
    assert "stock in turns with it" in render("tiny", collect([record]))


@pytest.mark.skipif(DEVICE.type != "cpu", reason="on a GPU the disk is not all there is")
def test_what_streams_is_measured_beside_stock_and_the_disk(folder: Path, tmp_path: Path) -> None:
    records = measured(folder, tmp_path, "limits", "lookup", "disk", "disk-lossless")
    by_name = {record["scenario"]: record for record in records}
    streamed = ["disk", "disk-lossless"]
    assert list(by_name) == ["limits", "repetitive", "prompt-lookup", *streamed]
    assert by_name["repetitive"]["tokens"] == by_name["prompt-lookup"]["tokens"]
    assert len(by_name["prompt-lookup"]["step_seconds"]) < 63 / 5
    for name in streamed:
        assert by_name[name]["bytes_from_disk"] > 0
        assert len(by_name[name]["direct_read"]) == 2
        assert min(by_name[name]["direct_read"]) > 0
    assert by_name["disk-lossless"]["tokens"] == by_name["disk"]["tokens"]
