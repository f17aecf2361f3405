"""Rows on their way to a simulated CUDA device: see `test_cuda_order`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rabbitllm.checkpoint.codecs.cast import Cast
from rabbitllm.checkpoint.codecs.codec import Codec
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.checkpoint.tensors import Extent, TensorEntry
from rabbitllm.streaming.devices import CudaTransfer, cuda, row_support
from rabbitllm.streaming.devices.encoded import Encoded, Portion
from rabbitllm.streaming.devices.lookup import Lookup
from rabbitllm.streaming.devices.recorder import Recorder
from rabbitllm.streaming.devices.row_work import Home
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.plan import EMPTY, Memory, Shelf
from rabbitllm.streaming.shelf import RowShelf
from rabbitllm.streaming.weights import Owner, Stage, Weight, lay_out
from tests.rabbitllm.streaming.devices import twin
from tests.rabbitllm.streaming.devices.test_cuda_order import (
    WIDTH,
    Device,
    Inverse,
    Simulated,
    device,
)

__all__ = ["device"]

ROWS = 5
KINDS = ("plain", "coded")
WHERE = pytest.mark.parametrize(
    ("memory", "host"), [("host", 0), ("disk", 2), ("disk", 4)], ids=["host", "disk", "kept"]
)


class FromFile(Simulated):
    """Reads rows from a real file; the rest of the device is simulated."""

    def __init__(self, entries: dict[str, TensorEntry]) -> None:
        CudaTransfer.__init__(self, Reader(entries), Meter(), torch.device("cuda", 0))


class Mixture:
    """Two stages of experts, each with a plain weight and another one, encoded as a rule."""

    def __init__(
        self, folder: Path, memory: Memory, host: int, slots: int, other: Codec | None = None
    ) -> None:
        self.truth: dict[str, torch.Tensor] = {}
        entries, stages = {}, []
        for name in "ab":
            module, weights = nn.Module(), []
            for kind, codec in (("plain", PLAIN), ("coded", other or Inverse())):
                key = f"{name}.{kind}"
                values = self.truth[key] = torch.randn(ROWS, WIDTH, WIDTH)
                stored = values.double() if isinstance(codec, Cast) else values
                data = stored.view(torch.uint8).reshape(-1)
                file = folder / key
                file.write_bytes((~data if isinstance(codec, Inverse) else data).numpy().tobytes())
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
        self._compute(device, name, numbers, self.shelf.lay_out(name, numbers))
        self.shelf.keep(name, numbers)

    @torch.inference_mode()
    def look_up(self, device: Device, name: str, numbers: Sequence[Sequence[int]]) -> None:
        """The same, and the device finds the rows itself."""
        found = self.shelf.look_up(name, torch.tensor(numbers))
        assert found is not None
        places, views = found

        def compute() -> None:
            with torch._C.DisableTorchFunctionSubclass():
                for kind, held in zip(KINDS, views, strict=True):
                    assert torch.equal(
                        held[places], self.truth[f"{name}.{kind}"][torch.tensor(numbers)]
                    )

        device.default.add(compute)

    def _compute(
        self, device: Device, name: str, numbers: Sequence[int], views: Sequence[torch.Tensor]
    ) -> None:
        due = [self.truth[f"{name}.{kind}"][list(numbers)] for kind in KINDS]

        def compute() -> None:
            with torch._C.DisableTorchFunctionSubclass():
                for held, values in zip(views, due, strict=True):
                    assert torch.equal(held, values), (name, numbers)

        device.default.add(compute)


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
        mixture.shelf.foresee_table("a", range(ROWS))
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


class Later:
    """What the kernels do, as work of the current stream."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self._add(partial(getattr(twin, name), *arguments))

    def _add(self, work: Callable[[], None]) -> None:
        def run() -> None:
            with torch._C.DisableTorchFunctionSubclass():
                work()

        self.device.current().add(run)


@pytest.fixture
def looks_up(device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device that can look rows up: what it does for that is work of the current stream."""
    end, counted = Lookup.end, Lookup.counted

    def behind(call: Callable[[Lookup], Any]) -> Callable[[Lookup], Any]:
        def wait(self: Lookup) -> Any:
            device.default.synchronize()
            with torch._C.DisableTorchFunctionSubclass():
                return call(self)

        return wait

    monkeypatch.setattr(Lookup, "end", behind(end))
    monkeypatch.setattr(Lookup, "counted", behind(counted))
    monkeypatch.setattr(cuda, "row_kernels", lambda *_: Later(device))
    return device


CODECS = pytest.mark.parametrize("codec", [PLAIN, Inverse()], ids=["plain", "encoded"])
ASKED = [[[0, 3]], [[1, 3]], [[4, 0]], [[2, 3]], [[3, 4]], [[0, 3]], [[1, 2]], [[0, 0]]]


@CODECS
@pytest.mark.parametrize("slots", [5, 8, 12])
def test_what_a_device_looks_up_is_right_beside_what_the_host_brings(
    looks_up: Device, tmp_path: Path, slots: int, codec: Codec
) -> None:
    mixture = Mixture(tmp_path, "host", 0, slots, codec)
    for turn in range(3):
        for numbers in ASKED:
            for name in "ab":
                mixture.look_up(looks_up, name, numbers)
        mixture.ask(looks_up, "a", range(ROWS) if turn else [1, 4])
        mixture.shelf.foresee_table("b", range(ROWS))
        mixture.ask(looks_up, "b", range(ROWS))
    looks_up.default.synchronize()
    mixture.meter.settle(wait=True)
    distinct = sum(len(set(each[0])) for each in ASKED)
    stats = mixture.meter.stats
    assert stats.rows_asked == 6 * distinct + 2 + 5 * ROWS
    assert stats.rows_brought < stats.rows_asked
    assert stats.bytes_of_rows == stats.bytes_to_device
    mixture.moving.close()


@pytest.mark.parametrize(("codec", "slots"), [(PLAIN, 12), (Inverse(), 14)])
def test_what_a_device_has_looked_up_it_keeps_and_the_host_knows(
    looks_up: Device, tmp_path: Path, codec: Codec, slots: int
) -> None:
    mixture = Mixture(tmp_path, "host", 0, slots, codec)
    for _ in range(4):
        for name in "ab":
            for numbers in ([[0, 1]], [[2, 3]], [[4, 4]]):
                mixture.look_up(looks_up, name, numbers)
    mixture.meter.settle(wait=True)
    assert mixture.meter.stats.rows_brought == 2 * ROWS
    mixture.ask(looks_up, "a", [4])
    assert mixture.meter.stats.rows_brought == 2 * ROWS
    mixture.moving.close()


@CODECS
def test_the_host_brings_what_lies_on_disk(looks_up: Device, tmp_path: Path, codec: Codec) -> None:
    mixture = Mixture(tmp_path, "disk", 2, 12, codec)
    with torch.no_grad():
        assert mixture.shelf.look_up("a", torch.tensor([[0, 1]])) is None
    mixture.moving.close()


def test_the_host_brings_rows_that_are_stored_in_different_ways(
    looks_up: Device, tmp_path: Path
) -> None:
    mixture = Mixture(tmp_path, "host", 0, 12)
    mixture.moving._rows["b", 3] = replace(mixture.moving._rows["b", 3], portions=())
    with torch.no_grad():
        assert mixture.shelf.look_up("a", torch.tensor([[0, 1]])) is None
    mixture.moving.close()


def test_rows_that_come_encoded_leave_room_for_those_they_become(
    looks_up: Device, tmp_path: Path
) -> None:
    """The last slots are the way of as many rows as the table has: nothing is kept there."""
    for slots, codec in ((4, PLAIN), (4, Inverse()), (5, Inverse())):
        mixture = Mixture(tmp_path, "host", 0, slots, codec)
        for numbers in ASKED:
            for name in "ab":
                mixture.look_up(looks_up, name, numbers)
        looks_up.default.synchronize()
        mixture.meter.settle(wait=True)
        kept = slots - (2 if codec == PLAIN else 4)
        stats = mixture.meter.stats
        assert (stats.rows_asked > stats.rows_brought) == (kept > 0)
        mixture.moving.close()


def test_the_host_brings_rows_that_are_larger_as_they_are_stored(
    looks_up: Device, tmp_path: Path
) -> None:
    for slots in (4, 5):
        mixture = Mixture(tmp_path, "host", 0, slots, Cast(torch.float64, torch.float32))
        if slots == 4:
            with torch.no_grad():
                assert mixture.shelf.look_up("a", torch.tensor([[0, 1]])) is None
        else:
            mixture.look_up(looks_up, "a", [[0, 1]])
        looks_up.default.synchronize()
        mixture.moving.close()


@CODECS
def test_what_is_looked_up_again_is_one_call(
    looks_up: Device, tmp_path: Path, codec: Codec
) -> None:
    mixture = Mixture(tmp_path, "host", 0, 12, codec)
    made = []
    for numbers in ASKED:
        before = len(looks_up.default.work)
        mixture.look_up(looks_up, "a", numbers)
        made.append(len(looks_up.default.work) - before)
    numbers_copied, recorded, computed = 1, 1, 1
    assert made[0] > numbers_copied + recorded + computed
    assert set(made[1:]) == {numbers_copied + recorded + computed}
    looks_up.default.synchronize()
    mixture.moving.close()


def test_the_end_waits_for_every_stream_that_rows_were_looked_up_in(
    looks_up: Device, tmp_path: Path
) -> None:
    mixture = Mixture(tmp_path, "host", 0, 12)
    mixture.look_up(looks_up, "a", [[0, 1]])
    looks_up.default.synchronize()
    other = looks_up.stream(torch.device("cuda", 0))
    other.early = False
    with looks_up.using(other), torch.inference_mode():
        mixture.shelf.look_up("b", torch.tensor([[0, 1]]))
    assert other.done < len(other.work)
    mixture.moving.close()
    assert other.done == len(other.work)


class CompilationError(Exception):
    """Triton's are no RuntimeError."""


def test_the_host_brings_rows_whose_kernels_do_not_compile(
    device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: object) -> None:
        raise CompilationError("decodes nothing")

    ours = SimpleNamespace(**vars(twin), decodes=lambda _: True)
    triton = SimpleNamespace(TritonError=CompilationError)
    monkeypatch.setitem(sys.modules, "triton", triton)
    monkeypatch.setitem(sys.modules, "triton.errors", triton)
    name = "rabbitllm.streaming.devices.row_kernels"
    monkeypatch.setitem(sys.modules, name, ours)
    monkeypatch.setattr(sys.modules[name.rpartition(".")[0]], "row_kernels", ours, raising=False)
    monkeypatch.setattr(row_support, "find_spec", lambda _: True)
    monkeypatch.setattr(row_support, "readable_by_kernels", lambda: True)
    for works in (True, False):
        if not works:
            monkeypatch.setattr(ours, "decode_rows", fails)
        mixture = Mixture(tmp_path, "host", 0, 12)
        assert (mixture.shelf._find_lookup() is not None) == works
        assert ("CompilationError: decodes nothing" in caplog.text) != works
        mixture.moving.close()


def small_and_large(device: Device) -> Lookup:
    """What looks up rows of 16 bytes, each filled with its number: 4 of a stage, 8 of another."""
    whole = slice(0, 16)
    homes, plain = {}, Encoded(16, (), (Portion(whole, (), whole),))
    for name, rows in (("small", 4), ("large", 8)):
        memory = [torch.full((16,), row, dtype=torch.uint8) for row in range(rows)]
        homes[name] = Home(memory, plain, 16)
    slots = torch.zeros(12, 16, dtype=torch.uint8)
    lookup = Lookup(slots, homes, Later(device), Recorder())
    lookup.begin({}, 7)
    return lookup


def test_what_is_no_row_of_a_stage_comes_from_nowhere(device: Device) -> None:
    """The number behind the last of a smaller stage is one of a larger stage's rows."""
    lookup = small_and_large(device)
    for asked in ([1, 4, -1], [4, 3, 1]):
        places = lookup.run("small", torch.tensor(asked))
        device.default.synchronize()
        distinct = sorted({number for number in asked if 0 <= number < 4})
        assert places.tolist() == [distinct.index(n) if n in distinct else 3 for n in asked]
        assert lookup._memory[: len(distinct), 0].tolist() == distinct
    assert [tuple(each) for each in lookup.counted()] == [("small", 3, 2, 32), ("large", 0, 0, 0)]
    assert set(lookup.end()["small"]) == {1, 3}
    lookup._recorder.close()


def test_a_token_is_one_call_behind_prompts_of_many_sizes(looks_up: Device) -> None:
    lookup = small_and_large(looks_up)
    for _ in range(2):
        for rows in range(7, 1, -1):
            lookup.run("large", torch.arange(rows))
    made = []
    for _ in range(3):
        before = len(looks_up.default.work)
        lookup.run("large", torch.tensor([5]))
        made.append(len(looks_up.default.work) - before)
    assert made[0] > made[1] == made[2] == 1
    lookup._recorder.close()


def test_work_that_was_cut_off_the_first_time_is_not_recorded(looks_up: Device) -> None:
    lookup, interrupted = small_and_large(looks_up), list[None]()

    def interrupt(*_: object) -> None:
        interrupted.append(None)
        raise KeyboardInterrupt  # while its kernels are compiled

    look_up, lookup._kernels.look_up = lookup._kernels.look_up, interrupt  # type: ignore[method-assign]
    for turn in range(3):
        with pytest.raises(KeyboardInterrupt):
            lookup.run("large", torch.tensor([5]))
        assert len(interrupted) == turn + 1
    lookup._kernels.look_up = look_up  # type: ignore[method-assign]
    assert not lookup._recorder._graphs
    lookup._recorder.close()


@pytest.mark.parametrize("asked", [[[0, 1, 2, 3, 4]], [[0, 1], [1, 2]], []])
def test_the_host_brings_what_leaves_no_room_or_is_nearly_all(
    looks_up: Device, tmp_path: Path, asked: Any
) -> None:
    mixture = Mixture(tmp_path, "host", 0, 7, PLAIN)
    with torch.no_grad():
        assert mixture.shelf.look_up("a", torch.tensor(asked)) is None
    with torch.enable_grad():  # a graph keeps rows by their numbers
        assert mixture.shelf.look_up("a", torch.tensor([[0]])) is None
    with torch.no_grad():
        assert mixture.shelf.look_up("a", torch.tensor([[0]])) is not None
    mixture.moving.close()


@CODECS
def test_an_interrupt_of_any_call_leaves_the_next_one_right(
    looks_up: Device, tmp_path: Path, codec: Codec
) -> None:
    mixture = Mixture(tmp_path, "host", 0, 8, codec)
    for call in count(1):
        looks_up.calls, looks_up.interrupt_at = 0, call
        try:
            for name in "ab":
                mixture.look_up(looks_up, name, [[0, 3]])
            mixture.ask(looks_up, "a", [1, 2, 3])
            mixture.shelf.foresee_table("b", range(ROWS))
            mixture.ask(looks_up, "b", range(ROWS))
        except KeyboardInterrupt:
            looks_up.interrupt_at = -1
            mixture.ask(looks_up, "b", [0, 1])
            mixture.look_up(looks_up, "b", [[4, 2]])
            mixture.look_up(looks_up, "a", [[0, 3]])
            looks_up.default.synchronize()
        else:
            break
    assert call > 20
    mixture.moving.close()
