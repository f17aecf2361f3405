from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.streaming.table import TARGETS, collect, differing, main, render


def record(scenario: str, **figures: Any) -> dict[str, Any]:
    return {"checkpoint": "m", "torch": "2", "scenario": scenario, "tokens": [1, 2]} | figures


def test_lines_stand_beside_their_targets() -> None:
    records = collect(
        [
            record("limits", pinned=50.0, device_name="GPU"),
            record("host", tokens_per_second=4.0, device_gb_per_second=51.0),
            record("batch-32", tokens_per_second=96.0),
            record("limits", pinned=52.0, device_name="GPU"),
        ]
    )
    assert records["limits"]["pinned"] == 51.0
    text = render("m", records)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert ["100.0%", "97%", "yes"] in [line[3:] for line in lines]
    assert ["24.0x", "25x", "no"] in [line[3:] for line in lines]
    assert "from disk" not in text


def test_a_half_that_does_not_stream_is_held_against_stock() -> None:
    records = collect(
        [
            record("limits", device_name="CPU"),
            record("disk", direct_read=[0.5, 1.5]),
            record("stock", tokens_per_second=10.0),
            record("half", tokens_per_second=9.0, bytes_from_disk=0.0),
        ]
    )
    (target,) = [target for target in TARGETS if target.needs[0] == "half"]
    assert target.reached(records) == pytest.approx(0.9)
    records["half"] = records["half"] | {"bytes_from_disk": 5e8}
    assert target.reached(records) == pytest.approx(4.5)


def test_tokens_that_differ_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = [record("stock"), record("fits", tokens=[1, 2, 3])]
    other = record("fits", tokens=[1, 5])
    assert differing(collect(same)) == []
    assert differing(collect([*same, other])) == ["fits and stock part at token 2."]
    for records, status in ((same, 0), ([*same, other], 1)):
        rates = {"tokens_per_second": 1.0, "stock_tokens_per_second": 1.0}
        lines = [json.dumps(one | rates) for one in records]
        (tmp_path / "results.jsonl").write_text("\n".join(lines))
        assert main([str(tmp_path / "results.jsonl")]) == status
    assert "part at token 2" in capsys.readouterr().out
