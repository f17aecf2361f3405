"""The benchmark of both roads, on a device that is simulated."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks.host_compute import measure
from benchmarks.streaming import setups
from rabbitllm import auto
from rabbitllm.streaming.roads import Roads
from tests.rabbitllm.streaming.simulated import simulate

ROADS = Roads(link=1e6, host={1: 1e6}, threads=1, crossing=0.0)


def test_each_way_is_held_against_the_link_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    simulate(monkeypatch)
    device = torch.device("cpu", 0)
    for module in (measure, setups):
        monkeypatch.setattr(module, "DEVICE", device)
    for module in (auto, measure):
        monkeypatch.setattr(module, "roads_of", lambda *_: ROADS)
    monkeypatch.setattr(measure, "LONG", 40)
    monkeypatch.setattr(measure, "TURNS", 1)
    for name in ("reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("max_memory_allocated", "max_memory_reserved"):
        monkeypatch.setattr(torch.cuda, name, lambda: 1000)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    asked = argparse.Namespace(
        shape="tiny", folder=tmp_path, ways=",".join(measure.WAYS), budgets="min"
    )
    asked.new_tokens = 4
    link, both, lossless, packed = measure.measure_all(asked)
    for record in (link, both, lossless, packed):
        assert record["same_bits"]  # on a CPU that is the device, too
        assert (record["kl_nats"], record["same_next_token"]) == (0, 1)
        assert record["greedy_parts_at"] is None
    assert link["bytes_on_host"] == 0 < both["bytes_on_host"]
    assert both["bytes_to_device"] < link["bytes_to_device"]
    assert lossless["bytes_to_device"] <= link["bytes_to_device"]
    assert packed["bytes_on_host"] > 0
    assert both["on_host"] > 0 < both["predicted"]
    text = measure.render([link, both, lossless, packed])
    assert text.count("\n| min") == 4
    assert "link 0.0 GB/s, CPU 0.0 GB/s with 1 threads" in text


def test_answers_that_differ_are_measured() -> None:
    plain = {"logits": torch.tensor([[2.0, 0.0], [0.0, 2.0]]), "tokens": [1, 2, 3]}
    other = {"logits": torch.tensor([[2.0, 0.0], [2.0, 0.0]]), "tokens": [1, 5, 3]}
    found = measure.compare(other, plain)
    assert not found["same_bits"]
    assert found["same_next_token"] == 0.5
    assert found["greedy_parts_at"] == 1
    p = torch.tensor([0.0, 2.0]).softmax(0)
    assert found["kl_nats"] == pytest.approx(float((p * (p / p.flip(0)).log()).sum()) / 2)
