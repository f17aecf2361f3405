"""The benchmark of several GPUs, on devices that are simulated."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest
import torch

from benchmarks.gpus import measure
from rabbitllm.measure.limits import Limits
from tests.rabbitllm.streaming.simulated import simulate


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> argparse.Namespace:
    """What is asked for, where two GPUs are simulated."""
    simulate(monkeypatch, 2)
    monkeypatch.setattr(measure, "limits_of", lambda *_: Limits(pinned=1e-3, compute=1.0))
    monkeypatch.setattr(measure, "TURNS", 1)
    monkeypatch.setattr(measure, "gpus", lambda n: [torch.device("cpu", i) for i in range(n)])
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda _: 1000)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    return argparse.Namespace(
        shape="tiny", folder=tmp_path, counts=[1, 2], budget="min", batch=2, prompt=5, new_tokens=3
    )


def test_each_count_is_held_against_the_first(asked: argparse.Namespace) -> None:
    one, two = records = list(measure.measure_all(asked))
    assert [record["devices"] for record in records] == [1, 2]
    assert all(record["same_tokens"] and record["within_budget"] for record in records)
    assert len(one["tokens"]) == len(two["tokens"]) == 3
    assert one["bytes_to_devices"] > 0 < one["planned"]
    assert {*two["stages"]} == {"cpu:0", "cpu:1"}
    assert all(each["computed"] for each in two["stages"].values())
    assert not one["on_disk"]
    text = measure.render(records)
    assert len(re.findall(r"\| yes +\| yes +\|", text)) == 2
    assert "Some GPU" in text
    assert "NO" in measure.render([one, two | {"same_tokens": False}])


def test_more_gpus_than_there_are_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SystemExit):
        measure.main(["--folder", str(tmp_path), "--out", str(tmp_path / "o"), "--counts", "1,2"])
    assert "asks for 2 GPUs, and there are 1" in capsys.readouterr().err
