from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rabbitllm import StreamedModel
from rabbitllm.measure.limits import Limits
from rabbitllm.stats import Stats


def test_figures_follow_from_counts() -> None:
    counts = Stats(forwards=5, tokens=10, bytes_from_disk=4 * 10**9, wait_seconds=1.5, seconds=2.0)
    figures = counts.figures(Limits(disk=2.5, pinned=50.0))
    assert figures["forwards"] == 5
    assert figures["compute_seconds"] == pytest.approx(0.5)
    assert figures["tokens_per_second"] == pytest.approx(5.0)
    assert figures["disk_gb_per_second"] == pytest.approx(2.0)
    assert figures["device_gb_per_second"] == 0
    assert figures["share_of_limit"] == pytest.approx(0.8)


def test_the_slower_wire_is_the_limit() -> None:
    counts = Stats(bytes_from_disk=10**9, bytes_to_device=100 * 10**9, seconds=4.0)
    assert counts.figures(Limits(disk=1.0, pinned=50.0))["share_of_limit"] == pytest.approx(0.5)


def test_nothing_has_no_rate() -> None:
    figures = Stats().figures(Limits(disk=1.0))
    for name in ("tokens_per_second", "disk_gb_per_second", "share_of_limit"):
        assert figures[name] is None


def test_a_model_tells_its_share_of_the_limits_it_is_given(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    model = streamed(checkpoint(), profiling_mode=True)
    model(prompt)
    assert model.streaming_stats()["share_of_limit"] is None
    stats = model.streaming_stats(Limits(disk=1e-3))
    assert stats["tokens"] == len(prompt)
    assert stats["share_of_limit"] == pytest.approx(
        stats["bytes_from_disk"] / 1e6 / stats["seconds"]
    )
    on_disk = set(model.streaming_plan.streamed("disk"))
    assert set(stats["stages"]) == on_disk
    assert sum(times["bytes"] for times in stats["stages"].values()) == stats["bytes_from_disk"]
    for times in stats["stages"].values():
        assert times["read"] > 0
        assert times["copy"] == 0
        assert times["compute"] > 0
