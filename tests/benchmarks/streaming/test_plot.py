from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.checkpoints import SHAPES, write_checkpoint

pytest.importorskip("matplotlib")

from benchmarks.streaming import plot as streaming_plot
from benchmarks.streaming.setups import DEVICE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    return write_checkpoint(SHAPES["tiny"], root / "tiny", torch.bfloat16, "cpu")


@pytest.mark.skipif(DEVICE.type != "cpu", reason="measures what is read from disk")
def test_the_sweep_moves_more_with_layers_and_less_with_memory(
    folder: Path, tmp_path: Path
) -> None:
    picture = tmp_path / "sweep.svg"
    streaming_plot.main(
        ["--shape", "tiny", "--folder", str(folder), "--out", str(picture), "--new-tokens", "3"]
    )
    assert "</svg>" in picture.read_text()
    points = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    assert [point["layers"] for point in points] == [1, 2, 3, 4, 4, 4, 4]
    moved = [point["moved_bytes"] for point in points]
    assert moved[:4] == sorted(moved[:4])
    assert moved[3:] == sorted(moved[3:], reverse=True)
    assert moved[3] > moved[4]
    assert list(folder.parent.iterdir()) == [folder]  # the shorter ones are gone
