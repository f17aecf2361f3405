from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rabbitllm.measure import limits
from rabbitllm.measure.limits import Limits, decode_bandwidth, direct_read_bandwidth, measure_limits


def test_the_slowest_wire_decides() -> None:
    known = Limits(disk=1.0, pinned=50.0, compute=10.0)
    assert known.seconds(2e9, 2e9, 3e9) == pytest.approx(2.0)
    assert known.seconds(0, 100e9, 3e9) == pytest.approx(2.0)
    assert known.seconds(0, 0, 3e9) == pytest.approx(0.3)


def test_what_was_not_measured_limits_nothing() -> None:
    assert Limits().seconds(1e9, 1e9, 1e9) == 0
    assert Limits(disk=2.0, compute=10.0).describe() == "disk 2.00 GB/s, compute 10.00 GB/s"


@pytest.mark.parametrize("sizes", [[10], [5 << 20], [4 << 20, 1, 9 << 20], [0, 7]])
def test_every_byte_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sizes: list[int]
) -> None:
    files = [tmp_path / str(i) for i in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        file.write_bytes(b"x" * size)
    counts = []
    preadv = limits.os.preadv

    def counting(*arguments: object) -> int:
        counts.append(preadv(*arguments))
        return counts[-1]

    monkeypatch.setattr(limits.os, "preadv", counting)
    rate = direct_read_bandwidth(files)
    assert sum(counts) == sum(sizes)
    assert rate is not None
    assert rate > 0


def test_a_limit_of_bytes_and_of_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x" * (20 << 20))
    counts = []
    preadv = limits.os.preadv
    monkeypatch.setattr(limits.os, "preadv", lambda *a: counts.append(preadv(*a)) or counts[-1])
    direct_read_bandwidth([tmp_path / "file"], limit=8 << 20)
    assert sum(counts) == 8 << 20
    counts.clear()
    assert direct_read_bandwidth([tmp_path / "file"], seconds=0) == 0
    assert not counts


def test_nothing_to_read(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert direct_read_bandwidth([]) is None
    assert direct_read_bandwidth([tmp_path / "empty"]) is None


def test_the_cpu_has_a_disk_and_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    monkeypatch.setattr(limits, "MATRIX", 64)
    found = measure_limits([torch.device("cpu")], torch.bfloat16, [tmp_path / "file"])
    assert found.disk
    assert found.compute
    assert found.pinned is None
    assert decode_bandwidth(torch.device("cpu"), torch.float32, seconds=0) > 0
