"""Rows on their way to a simulated CUDA device: see `test_cuda_order`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.tensors import Extent, TensorEntry
from rabbitllm.streaming.devices import CudaTransfer
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.plan import EMPTY, Memory, Shelf
from rabbitllm.streaming.shelf import RowShelf
from rabbitllm.streaming.weights import Owner, Stage, Weight, lay_out
from tests.rabbitllm.streaming.devices.test_cuda_order import (
    WIDTH,
    Device,
    Inverse,
    Simulated,
    device,
)

__all__ = ["device"]

ROWS = 5
WHERE = pytest.mark.parametrize(
    ("memory", "host"), [("host", 0), ("disk", 2), ("disk", 4)], ids=["host", "disk", "kept"]
)


class FromFile(Simulated):
    """Reads rows from a real file; the rest of the device is simulated."""

    def __init__(self, entries: dict[str, TensorEntry]) -> None:
        CudaTransfer.__init__(self, Reader(entries), Meter(), torch.device("cuda", 0))


class Mixture:
    """Two stages of experts, each with a plain weight and an encoded one."""

    def __init__(self, folder: Path, memory: Memory, host: int, slots: int) -> None:
        self.truth: dict[str, torch.Tensor] = {}
        entries, stages = {}, []
        for name in "ab":
            module, weights = nn.Module(), []
            for kind, codec in (("plain", PLAIN), ("coded", Inverse())):
                key = f"{name}.{kind}"
                values = self.truth[key] = torch.randn(ROWS, WIDTH, WIDTH)
                data = values.view(torch.uint8).reshape(-1)
                file = folder / key
                file.write_bytes((~data if kind == "coded" else data).numpy().tobytes())
                place = Extent(file, 0, data.numel())
                entries[key] = TensorEntry((place,), values.dtype, tuple(values.shape), codec)
                owners = (Owner(module, kind),)
                weights.append(Weight(key, owners, values.dtype, values.shape, by=1, rows=ROWS))
            stages.append(Stage(name, (module,), lay_out(weights), least_rows=2))
        self.moving = FromFile(entries)
        size = stages[0].row_nbytes
        on_host = Shelf(host, size + 4096) if host else EMPTY
        memory_of_device = self.moving.shelf(Shelf(slots, size), on_host, 2)
        for each in stages:
            self.moving.open(each, memory)
        self.shelf = RowShelf(self.moving, memory_of_device, stages)
        self.meter: Meter = self.moving.meter

    @torch.no_grad()
    def ask(self, device: Device, name: str, numbers: Sequence[int]) -> None:
        """The device checks the rows when it gets there."""
        views = self.shelf.lay_out(name, numbers)
        due = [self.truth[f"{name}.{kind}"][list(numbers)] for kind in ("plain", "coded")]

        def compute() -> None:
            with torch._C.DisableTorchFunctionSubclass():
                for held, values in zip(views, due, strict=True):
                    assert torch.equal(held, values), (name, numbers)

        device.default.add(compute)
        self.shelf.keep(name, numbers)


@WHERE
@pytest.mark.parametrize("slots", [3, 5, 9])
def test_rows_are_right_however_far_the_host_is_ahead(
    device: Device, tmp_path: Path, memory: Memory, host: int, slots: int
) -> None:
    mixture = Mixture(tmp_path, memory, host, slots)
    asked = [[0, 3], [1, 3], [0, 1, 4], [2, 3], [3, 4], [0, 3], [1, 2, 4], [0]]
    for numbers in asked:
        mixture.ask(device, "a", numbers)
        mixture.shelf.foresee("b", [numbers[0], 2])
        mixture.ask(device, "b", numbers)
        mixture.shelf.foresee_all("a", ROWS)
    device.default.synchronize()
    stats = mixture.meter.stats
    assert stats.rows_asked == 2 * sum(map(len, asked))
    assert (stats.bytes_from_disk > 0) == (memory == "disk")
    mixture.moving.close()


def test_what_the_host_keeps_is_read_once(device: Device, tmp_path: Path) -> None:
    mixture = Mixture(tmp_path, "disk", 12, 2)
    for _ in range(3):
        for name in "ab":
            for numbers in ([0, 1], [2, 3], [4]):
                mixture.ask(device, name, numbers)
    device.default.synchronize()
    rows = sum(values.nbytes for values in mixture.truth.values())
    assert mixture.meter.stats.bytes_from_disk == rows
    assert mixture.meter.stats.bytes_to_device > 2 * rows
    mixture.moving.close()
