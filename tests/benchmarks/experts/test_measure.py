"""The benchmark of experts, on a CPU: stock, the experts that are asked for, and all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.experts import measure
from benchmarks.experts.table import limit, render

EXPERT = {  # three matrices; of gpt-oss, biases in bfloat16
    "tiny": 3 * 64 * 32 * 2,
    "tiny-gpt-oss": 3 * 64 * 32 * 17 // 32 + (2 * 32 + 64) * 2,
    "tiny-deepseek-v3": 3 * (128 * 128 + 4),
}
"""Shape -> bytes of an expert in its files."""


@pytest.fixture(params=EXPERT)
def records(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[dict[str, Any]]:
    monkeypatch.setattr(measure, "TURNS", 1)
    monkeypatch.setattr(measure, "SLOW", 3)
    out = tmp_path / "out.jsonl"
    asked = f"--shape {request.param} --folder {tmp_path} --out {out} --peers stock,whole"
    assert measure.main([*asked.split(), "--new-tokens", "4", "--prompt", "24"]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_experts_that_are_asked_for_are_fewer_bytes_than_all_and_the_same_tokens(
    records: list[dict[str, Any]],
) -> None:
    stock, routed, whole = records
    names = ["stock", "min, from disk", "min, from disk, all experts"]
    assert [record["engine"] for record in records] == names
    assert {record["expert_bytes"] for record in records} == {EXPERT[stock["shape"]]}
    assert stock["tokens"][:3] == routed["tokens"][:3] == whole["tokens"]
    assert not stock["per_token"]
    assert whole["per_token"]["rows_asked"] == 0 < routed["per_token"]["rows_asked"]
    moved = [record["per_token"]["bytes_from_disk"] for record in (routed, whole)]
    assert 0 < moved[0] < moved[1]
    text = render(records)
    assert text.count("| yes") == 3
    assert "NO" in render([stock, routed | {"tokens": [-1]}])
    shared = routed | {"per_token": routed["per_token"] | {"bytes_on_host": 1.234e12}}
    assert "1234.00 GB" not in text
    assert "1234.00 GB" in render([stock, shared])


def test_host_compute_adds_a_row_for_each_budget_in_ram(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    monkeypatch.setattr(measure, "measure_all", lambda asked: measure.engines(asked, tmp_path))
    monkeypatch.setattr(measure, "write_as_they_come", lambda engines, *_: found.extend(engines))
    asked = f"--shape tiny --folder {tmp_path} --out {tmp_path / 'out'} --budgets min,8GiB"
    assert measure.main([*asked.split(), "--from", "ram,disk"]) == 0
    plain = [engine.name for engine in found]
    found.clear()
    assert measure.main([*asked.split(), "--from", "ram,disk", "--host-compute"]) == 0
    shared = [each for each in found if each.load.keywords.get("host_compute") == "auto"]
    assert [each.name for each in shared] == [
        "min, from ram, host_compute",
        "8GiB, from ram, host_compute",
    ]
    assert [each.name for each in found if each not in shared] == plain


def test_the_limit_is_the_slowest_wire_or_stock() -> None:
    moved = {"bytes_from_disk": 2e9, "bytes_to_device": 30e9}
    record = {"per_token": moved, "rates": {"disk": 1.0, "link": 50.0}, "stock_turns": []}
    assert limit(record) == 0.5
    assert limit(record | {"per_token": moved | {"bytes_from_disk": 0}}) == pytest.approx(5 / 3)
    assert limit(record | {"stock_turns": [0.1, 0.2, 0.3]}) == pytest.approx(0.2)
