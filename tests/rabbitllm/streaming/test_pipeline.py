from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace

import pytest
import torch
from torch import nn
from typing_extensions import override

from rabbitllm.streaming.binding import marked
from rabbitllm.streaming.devices.slot import Load, Slot
from rabbitllm.streaming.devices.transfer import Transfer
from rabbitllm.streaming.lane import Lane
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.pipeline import Options, Pipeline
from rabbitllm.streaming.plan import Shelf
from rabbitllm.streaming.weights import Owner, Stage, Weight
from tests.patience import PATIENCE

WIDTH = 4
NBYTES = 256


class Store(Transfer):
    """Brings weights from a dictionary, and holds the pipeline to its side of the bargain.

    A buffer is spoiled when its load starts and whole only after `wait`.
    """

    def __init__(self, model: Toy, broken: str) -> None:
        self.model = model
        self.truth = model.truth
        self.started: list[str] = []
        self.broken = broken

    @staticmethod
    @override
    def count() -> int:
        return 1

    @staticmethod
    @override
    def free(device: torch.device) -> int:
        return 0

    @staticmethod
    @override
    def total(device: torch.device) -> int:
        return 0

    @override
    def mark(self) -> float:
        return time.perf_counter()

    @override
    def resident(self, stage: Stage, in_place: bool) -> list[torch.Tensor]:
        return [self.truth[weight.name] for weight in stage.weights]

    @override
    def slot(self, nbytes: int, staging: int = 0) -> Slot:
        return Slot(torch.zeros(nbytes, dtype=torch.uint8))

    @override
    def shelf(self, shelf: Shelf, on_host: Shelf, passing: int) -> torch.Tensor:
        raise AssertionError("none of these blocks is asked for rows")

    @override
    def _read_rows(self, stage: Stage, rows: Sequence[tuple[int, torch.Tensor]]) -> None:
        raise AssertionError("none of these blocks is asked for rows")

    @override
    def _begin(self, load: Load, slot: Slot) -> Future[None]:
        assert not self._in_use(slot), f"{load.stage.name} overwrites weights in use"
        self.started.append(load.stage.name)
        slot.buffer.fill_(0xFF)
        arrival: Future[None] = Future()
        if load.stage.name in self.broken:
            arrival.set_exception(OSError(f"{load.stage.name} cannot be read"))
        else:
            arrival.set_result(None)
        return arrival

    @override
    def wait(self, slot: Slot) -> None:
        assert slot.load is not None
        assert slot.load.arrival is not None
        slot.load.arrival.result()
        data = self.truth[slot.load.stage.name].reshape(-1).view(torch.uint8)
        offset = slot.load.stage.weights[0].offset
        slot.buffer[offset : offset + data.numel()] = data

    @override
    def computed(self, slot: Slot) -> None:
        pass

    @override
    def check(self) -> None:
        """Nothing is used in place."""

    @override
    def close(self) -> None:
        """There is nothing under way."""

    @override
    def inherit(self) -> None:
        """Nor is there anything that a fork of pytest's leaves behind."""

    def _in_use(self, slot: Slot) -> bool:
        memory = slot.buffer.untyped_storage().data_ptr()
        weights = [self.model.blocks[name].weight for name in self.model.bound()]
        return any(weight.untyped_storage().data_ptr() == memory for weight in weights)

    def take(self) -> list[str]:
        """What was started since the last call."""
        started, self.started = self.started, []
        return started


class Toy(nn.Module):
    """Linear blocks without weights, run in any order, once or several times."""

    def __init__(self, blocks: int, order: str = "") -> None:
        super().__init__()
        self.truth = {str(i): torch.randn(WIDTH, WIDTH) for i in range(blocks)}
        self.blocks = nn.ModuleDict(
            {name: nn.Linear(WIDTH, WIDTH, bias=False, device="meta") for name in self.truth}
        )
        for block in self.blocks.values():
            marked(block.weight)
        self.order = order or "".join(self.truth)
        self.inside: Callable[[str], None] = lambda name: None
        self.pipeline: Pipeline | None = None

    @override
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        assert self.pipeline is not None
        output: torch.Tensor = self.pipeline.run(self.compute, (hidden,))
        return output

    def compute(self, hidden: torch.Tensor) -> torch.Tensor:
        for name in self.order:
            self.inside(name)
            hidden = torch.tanh(self.blocks[name](hidden))
        return hidden

    def expected(self, hidden: torch.Tensor) -> torch.Tensor:
        for name in self.order:
            hidden = torch.tanh(nn.functional.linear(hidden, self.truth[name]))
        return hidden

    def bound(self) -> list[str]:
        return [name for name, block in self.blocks.items() if not block.weight.is_meta]


INPUT = torch.randn(3, WIDTH)


def stages_of(model: Toy) -> list[Stage]:
    shape = torch.Size((WIDTH, WIDTH))
    return [
        Stage(name, (block,), (Weight(name, (Owner(block, "weight"),), torch.float32, shape, 0),))
        for name, block in model.blocks.items()
    ]


def run(model: Toy, slots: int = 2, broken: str = "", **options: bool) -> tuple[Store, Pipeline]:
    store = Store(model, broken)
    buffers = [store.slot(NBYTES) for _ in range(slots)]
    meter = Meter(options.get("profiling", False))
    model.pipeline = pipeline = Pipeline(
        {Lane(store, buffers): stages_of(model)}, meter, Options(**options)
    )
    pipeline.start()
    return store, pipeline


def run_with_outsize(model: Toy, name: str) -> tuple[Store, Pipeline]:
    """One stage is three times as large as the others, and only the first slot takes it."""
    store, stages = Store(model, ""), stages_of(model)
    stages = [
        replace(s, weights=(replace(s.weights[0], offset=2 * NBYTES),)) if s.name == name else s
        for s in stages
    ]
    slots = [store.slot(nbytes) for nbytes in (3 * NBYTES, NBYTES)]
    meter = Meter()
    model.pipeline = pipeline = Pipeline({Lane(store, slots): stages}, meter, Options())
    pipeline.start()
    return store, pipeline


def slots_of(pipeline: Pipeline) -> Sequence[Slot]:
    """Those of its only device."""
    (lane,) = pipeline._lanes
    return lane.slots


def check(model: Toy, times: int = 1) -> None:
    for _ in range(times):
        assert torch.equal(model(INPUT), model.expected(INPUT))
        assert model.bound() == []


def test_the_first_stages_load_before_the_first_forward() -> None:
    store, _ = run(Toy(5))
    assert store.take() == ["0", "1"]


@pytest.mark.parametrize("order", ["01234", "20413", "43210"])
@pytest.mark.parametrize("slots", [2, 3])
def test_the_order_is_learned_from_the_forward(order: str, slots: int) -> None:
    model = Toy(5, order)
    store, _ = run(model, slots)
    check(model, 2)  # in the second, what the first has fetched ahead in the wrong order goes
    store.take()
    for _ in range(3):
        check(model)
        started = store.take()
        assert sorted(started) == sorted(order)  # each once
        turn = order.index(started[0])
        assert "".join(started) == order[turn:] + order[:turn]


def test_behind_the_last_stage_comes_the_first_of_the_next_token() -> None:
    model = Toy(5)
    store, _ = run(model)
    check(model)
    assert store.take()[-2:] == ["0", "1"]
    model.inside = lambda name: None if name != "0" else check_untouched(store)
    check(model)


def check_untouched(store: Store) -> None:
    assert store.started == []


def test_the_next_stage_is_under_way_while_one_runs() -> None:
    model = Toy(5)
    store, _ = run(model)
    check(model)
    ahead: list[bool] = []
    for i, block in enumerate(model.blocks.values()):
        following = str((i + 1) % 5)
        block.register_forward_pre_hook(lambda *_, n=following: ahead.append(n in store.started))
    store.started = ["0", "1"]
    check(model)
    assert ahead == [True] * 5


def test_only_the_running_stage_has_weights() -> None:
    model = Toy(5)
    run(model)
    seen: list[list[str]] = []
    for block in model.blocks.values():
        block.register_forward_hook(lambda *_: seen.append(model.bound()), prepend=True)
    check(model, 2)
    assert seen == [[name] for name in "01234" * 2]


def test_a_weight_in_place_is_a_view_of_a_slot() -> None:
    model = Toy(4)
    _, pipeline = run(model)
    buffers = {slot.buffer.data_ptr() for slot in slots_of(pipeline)}
    used: set[int] = set()
    for block in model.blocks.values():
        block.register_forward_hook(lambda m, *_: used.add(m.weight.data_ptr()), prepend=True)
    check(model, 3)
    assert used == buffers


@pytest.mark.parametrize("order", ["0124", "01324", "43210", "42"])
def test_a_forward_of_another_order_is_right_and_learned(order: str) -> None:
    model = Toy(5)
    store, _ = run(model)
    check(model, 2)
    usual, model.order = model.order, order
    check(model, 3)
    store.take()
    check(model)
    assert sorted(store.take()) == (sorted(order) if len(order) > 2 else [])
    model.order = usual
    check(model, 2)


@pytest.mark.parametrize("order", ["", "3", "33", "01234012", "0101", "444123"])
def test_any_forward_between_others_is_right(order: str) -> None:
    model = Toy(5)
    run(model)
    for orders in (order, "01234", order, order, "01234"):
        model.order = orders
        check(model)


def test_a_stage_that_runs_twice_is_loaded_for_each_run_or_kept() -> None:
    model = Toy(4, "01012323")
    store, _ = run(model)
    check(model, 2)
    store.take()
    check(model)
    assert sorted(store.take()) == list("0123")


def test_stages_that_all_find_a_slot_load_once() -> None:
    model = Toy(2)
    store, _ = run(model)
    check(model, 4)
    assert store.take() == ["0", "1"]


@pytest.mark.parametrize("blocks", [2, 4, 5])
@pytest.mark.parametrize("outsize", ["0", "1", "last"])
def test_an_outsize_stage_has_one_slot_and_the_others_any(blocks: int, outsize: str) -> None:
    model = Toy(blocks)
    name = str(blocks - 1) if outsize == "last" else outsize
    store, pipeline = run_with_outsize(model, name)
    check(model, 2)
    store.take()
    check(model)
    assert len(store.take()) <= blocks  # nothing is loaded twice
    assert slots_of(pipeline)[1].stage is None or slots_of(pipeline)[1].stage.name != name
    model.order = model.order[::-1]
    check(model, 3)


def test_one_stage_streams_too() -> None:
    model = Toy(1)
    store, _ = run(model)
    check(model, 3)
    assert store.take() == ["0"]


def test_without_prefetching_each_stage_loads_when_it_is_needed() -> None:
    model = Toy(4)
    store, _ = run(model, prefetching=False)
    assert store.take() == []
    ready: list[list[str]] = []
    model.inside = lambda name: ready.append(store.take())
    check(model)
    assert ready == [[], ["0"], ["1"], ["2"]]
    assert store.take() == ["3"]
    check(model, 2)


def test_a_block_called_outside_a_forward_of_the_model_works() -> None:
    model = Toy(4)
    run(model)
    check(model)
    for name in "2031":
        expected = nn.functional.linear(INPUT, model.truth[name])
        assert torch.equal(model.blocks[name](INPUT), expected)
        assert model.bound() == []
    check(model, 2)


# errors


class StopError(RuntimeError):
    pass


@pytest.mark.parametrize("at", range(4))
def test_an_exception_in_a_block_leaves_the_model_usable(at: int) -> None:
    model = Toy(4)
    run(model)
    check(model)

    def stop(*_: object) -> None:
        raise StopError

    hook = model.blocks[str(at)].register_forward_pre_hook(stop)
    for _ in range(3):
        with pytest.raises(StopError):
            model(INPUT)
        assert model.bound() == []
    hook.remove()
    check(model, 3)


def test_an_exception_between_blocks_leaves_the_model_usable() -> None:
    model = Toy(4)
    run(model)

    def stop(name: str) -> None:
        if name == "2":
            raise StopError

    model.inside = stop
    for _ in range(3):
        with pytest.raises(StopError):
            model(INPUT)
        assert model.bound() == []
    model.inside = lambda name: None
    check(model, 3)


def test_an_exception_frees_the_model_for_other_threads() -> None:
    model = Toy(3)
    run(model)
    with pytest.raises(RuntimeError, match="shape"):
        model(torch.randn(3, WIDTH + 1))
    thread = threading.Thread(target=check, args=(model,), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_an_interrupt_from_the_keyboard_leaves_the_model_usable() -> None:
    model = Toy(4)
    run(model)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    hook = model.blocks["1"].register_forward_hook(interrupt, prepend=True)
    with pytest.raises(KeyboardInterrupt):
        model(INPUT)
    hook.remove()
    check(model, 2)
    thread = threading.Thread(target=check, args=(model,), daemon=True)
    thread.start()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def test_a_load_error_surfaces_in_the_forward_that_needs_it() -> None:
    model = Toy(4)
    run(model, broken="3")
    reached: list[str] = []
    model.inside = reached.append
    with pytest.raises(OSError, match="3 cannot be read"):
        model(INPUT)
    assert reached == list("0123")
    assert model.bound() == []


@pytest.mark.parametrize("broken", ["0", "2", "3"])
def test_a_load_error_passes_with_its_cause(broken: str) -> None:
    model = Toy(4)
    store, _ = run(model, broken=broken)
    for _ in range(3):
        with pytest.raises(OSError, match=f"{broken} cannot be read"):
            model(INPUT)
    store.broken = ""
    check(model, 3)


def test_a_stage_inside_itself_is_an_error() -> None:
    model = Toy(2)
    run(model)
    again = model.blocks["0"].register_forward_hook(lambda m, a, o: m(*a), prepend=True)
    with pytest.raises(RuntimeError, match="0 is already running"):
        model(INPUT)
    again.remove()
    check(model, 2)


def test_more_stages_inside_one_another_than_slots_are_an_error() -> None:
    model = Toy(4)
    run(model)
    hooks = [
        model.blocks[a].register_forward_hook(
            lambda m, args, out, b=b: model.blocks[b](*args), prepend=True
        )
        for a, b in ("01", "12")
    ]
    with pytest.raises(RuntimeError, match="No slot is free for 2"):
        model(INPUT)
    for hook in hooks:
        hook.remove()
    check(model, 2)


# threads


def test_two_threads_get_the_right_answers() -> None:
    model = Toy(5)
    _, pipeline = run(model)
    inputs = [torch.randn(2, WIDTH) for _ in range(2)]
    together, failures = threading.Barrier(2), []

    def generate(hidden: torch.Tensor) -> None:
        expected = model.expected(hidden)
        together.wait(PATIENCE)
        failures.extend(1 for _ in range(40) if not torch.equal(model(hidden), expected))

    threads = [threading.Thread(target=generate, args=(hidden,)) for hidden in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failures == []
    assert pipeline.meter.stats.forwards == 80
    assert model.bound() == []


def test_a_second_thread_waits_for_the_forward_of_the_first() -> None:
    model = Toy(3)
    run(model)
    inside, overlaps = threading.Semaphore(0), []

    def enter(name: str) -> None:
        inside.release()
        if name == "1":  # in the middle of a forward, give the other thread time to begin
            while inside.acquire(blocking=False):
                pass
            overlaps.append(inside.acquire(timeout=0.1))

    model.inside = enter
    threads = [threading.Thread(target=model, args=(INPUT,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert overlaps == [False, False]


# counts


def test_forwards_are_counted_and_timed() -> None:
    model = Toy(3)
    _, pipeline = run(model)
    check(model, 4)
    assert pipeline.meter.stats.forwards == 4
    assert pipeline.meter.stats.tokens == 4 * len(INPUT)
    assert 0 < pipeline.meter.stats.wait_seconds <= pipeline.meter.stats.seconds
    assert pipeline.meter.stats.stages == {}


def test_profiling_times_every_stage() -> None:
    model = Toy(3)
    _, pipeline = run(model, profiling=True)
    check(model, 2)
    assert list(pipeline.meter.stats.stages) == list("012")
    waits = [times.wait for times in pipeline.meter.stats.stages.values()]
    assert sum(waits) == pytest.approx(pipeline.meter.stats.wait_seconds)
    assert all(times.compute > 0 for times in pipeline.meter.stats.stages.values())


@pytest.mark.parametrize("order", ["", "43210", "0011", "2", "02413"])
def test_each_device_prefetches_its_own_stages(order: str) -> None:
    model = Toy(6, order)
    stores = [Store(model, ""), Store(model, "")]
    stages = stages_of(model)
    lanes = {
        Lane(store, [store.slot(NBYTES) for _ in range(2)]): stages[i::2]
        for i, store in enumerate(stores)
    }
    model.pipeline = Pipeline(lanes, Meter(), Options())
    model.pipeline.start()
    assert [store.take() for store in stores] == [["0", "2"], ["1", "3"]]
    check(model, 3)
    for store in stores:
        store.take()
    check(model)
    for i, store in enumerate(stores):
        own = sorted({name for name in model.order if int(name) % 2 == i})
        # Where all of them find a slot they stay.
        assert sorted(store.take()) == (own if len(own) > 2 else [])


def test_a_forward_that_leaves_a_device_out_does_not_take_its_order_away() -> None:
    model = Toy(6)
    stores = [Store(model, ""), Store(model, "")]
    stages = stages_of(model)
    first, second = (Lane(store, [store.slot(NBYTES) for _ in range(2)]) for store in stores)
    model.pipeline = Pipeline({first: stages[:3], second: stages[3:]}, Meter(), Options())
    check(model, 2)
    model.order = "012"
    check(model, 2)
    model.order = "012345"
    stores[1].take()
    check(model)
    assert sorted(stores[1].take()) == list("345")
