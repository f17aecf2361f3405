from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from typing_extensions import override

from rabbitllm import AutoModel, BudgetError, StreamedModel
from rabbitllm.prepare import prepare
from rabbitllm.streaming import crossing, placement, several
from rabbitllm.streaming.blocks import block_of, find_blocks
from rabbitllm.streaming.devices import CudaTransfer
from rabbitllm.streaming.placeholder import Placeholder
from rabbitllm.streaming.placement import make_rooms
from rabbitllm.streaming.plan import Plan
from rabbitllm.streaming.room import Rooms
from rabbitllm.streaming.several import Budgets, Sharing, place_on
from rabbitllm.streaming.staged import StagedModel
from rabbitllm.streaming.stages import REST
from rabbitllm.streaming.working import Work, read_geometry
from tests.rabbitllm.streaming.simulated import simulate

ARCHITECTURES = ["llama", "llama-tied", "gemma2", "mixtral", "qwen3_moe", "deepseek_v3"]


def on_devices(folder: Path, **options: Any) -> StreamedModel:
    """The model on the simulated devices, all of it in host memory."""
    return AutoModel.from_pretrained(folder, **{"device_memory": "min"} | options)


@pytest.mark.parametrize("count", [2, 3, 8])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_answer_is_that_of_one(
    count: int,
    architecture: str,
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulate(monkeypatch, count)
    folder = checkpoint(architecture)
    model, expected = on_devices(folder), stock(folder)
    used = {place.device for place in model.streaming_plan.places.values()}
    assert len(used) == min(count, 4)  # blocks
    options = {"max_new_tokens": 6, "do_sample": False}
    for cache in (None, "static"):
        ours, theirs = (
            each.generate(prompt, **options, cache_implementation=cache)
            for each in (model, expected)
        )
        assert torch.equal(ours, theirs)
    assert torch.equal(model(prompt).logits, expected(prompt).logits)


class Apart(TorchDispatchMode):
    """Finds operations on tensors of two devices, which all are the host's here.

    What an operation makes is on the device of what it is given; what is made of nothing is on any.

    Args:
        model: whose weights and buffers lie on their devices.
    """

    def __init__(self, model: StreamedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.model = model
        self.found: list[str] = []
        self.crossed = 0
        self.memory: dict[int, torch.device] = {}
        lanes = model._pipeline._lanes
        for lane in lanes:
            for slot in lane.slots:
                self.memory[slot.buffer.untyped_storage().data_ptr()] = lane.transfer.device
        for shelf in model._pipeline._shelves:
            where = shelf._transfer.device
            self.memory[shelf._slots.memory.untyped_storage().data_ptr()] = where
        self.homes = {
            module: model.streaming_plan.places[self._stage(name)].device
            for name, module in model.named_modules()
        }
        for module, home in self.homes.items():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and type(tensor) is not Placeholder:
                    self.memory[tensor.untyped_storage().data_ptr()] = home
        monkeypatch.setattr(crossing, "send_to_device", self.send)

    def _stage(self, name: str) -> str:
        places = self.model.streaming_plan.places
        block = block_of(name, find_blocks(self.model))
        inside = (stage for stage in places if block and block_of(stage, [block]))
        return next(inside, name if name in places else REST)

    def home(self, tensor: torch.Tensor) -> torch.device | None:
        found = getattr(tensor, "found_on", None)
        return found or self.memory.get(tensor.untyped_storage().data_ptr())

    def send(self, given: Any, home: torch.device, skip_keys: Any = None) -> Any:
        if isinstance(given, torch.Tensor):
            if self.home(given) == home:
                return given
            self.crossed += 1
            moved = given.clone()
            moved.found_on = home
            return moved
        if isinstance(given, dict):
            skipped = [skip_keys] if isinstance(skip_keys, str) else skip_keys or ()
            return {k: v if k in skipped else self.send(v, home) for k, v in given.items()}
        return type(given)(self.send(v, home) for v in given) if type(given) in PLAIN else given

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        homes = {home for t in given if (home := self.home(t))}
        if len(homes) > 1 and func is not torch.ops.aten.clone.default:
            self.found.append(f"{func} on {homes}")
        made = func(*args, **kwargs or {})
        for each in tree_leaves(made):
            if isinstance(each, torch.Tensor) and homes:
                each.found_on = next(iter(homes))
        return made


PLAIN = (list, tuple)


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_computes_on_two_devices_at_once(
    architecture: str,
    split: bool,
    checkpoint: Callable[..., Path],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulate(monkeypatch, 2)
    if split:
        monkeypatch.setattr(several, "_candidates", smallest)
    model = on_devices(checkpoint(architecture))
    apart = Apart(model, monkeypatch)
    ids = prompt.clone()
    with torch.no_grad(), apart:
        model.generate(ids, max_new_tokens=4, do_sample=False)
    assert apart.crossed
    assert apart.found == []


def smallest(staged: StagedModel) -> list[StagedModel]:
    """The stages as small as they become."""
    while finer := staged.with_largest_split():
        staged = finer
    return [staged]


# placement

GPUS = [torch.device("cuda", number) for number in range(8)]
ROOMY = 1 << 40


def staged_of(folder: Path) -> StagedModel:
    return prepare(folder, None, torch.device("cpu"), "auto", "eager", False).staged


def budgets(*totals: int | str, host: int = ROOMY) -> Budgets:
    """Of so many devices; host memory for all."""
    return Budgets(dict(zip(GPUS, totals, strict=False)), host, 64)  # type: ignore[arg-type]


def on(placed: StagedModel, plan: Plan, device: torch.device) -> list[str]:
    return [stage.name for stage in placed.stages if plan.places[stage.name].device == device]


@pytest.fixture
def no_working(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computing takes nothing: budgets are for weights alone."""
    monkeypatch.setattr(several, "working_bytes", lambda *_: 0)
    monkeypatch.setattr(placement, "working_bytes", lambda *_: 0)


@pytest.mark.usefixtures("no_working")
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("count", [2, 3, 8])
def test_every_device_keeps_its_budget_and_whole_blocks(
    architecture: str, count: int, checkpoint: Callable[..., Path]
) -> None:
    staged = staged_of(checkpoint(architecture))
    blocks = find_blocks(staged.model)
    least = place_on(staged, budgets("min"))[1].device_bytes[GPUS[0]]
    for total in (least - 1, least, int(1.3 * least)):
        placed, plan = place_on(staged, budgets(*[total] * count))
        for device, nbytes in plan.device_bytes.items():
            assert nbytes <= total
            parts = [stage for stage in placed.stages if stage.name in on(placed, plan, device)]
            resident = sum(s.nbytes for s in parts if plan.places[s.name].memory == "device")
            slots = sum(plan.slot_sizes[device])
            shelf = plan.shelves[device].total if device in plan.shelves else 0
            assert nbytes == resident + slots + shelf
        homes: dict[str, set[torch.device]] = {}
        for stage in placed.stages:
            for weight in stage.weights:
                if block := block_of(weight.name, blocks):
                    homes.setdefault(block, set()).add(plan.places[stage.name].device)
        assert all(len(devices) == 1 for devices in homes.values())
        assert homes[next(iter(blocks))] == {GPUS[0]}
        weights = [weight.name for stage in placed.stages for weight in stage.weights]
        assert sorted(weights) == sorted(w.name for s in staged.stages for w in s.weights)


@pytest.mark.usefixtures("no_working")
def test_host_memory_is_shared(checkpoint: Callable[..., Path]) -> None:
    staged = staged_of(checkpoint())
    layer = staged.sizes["model.layers.0"]
    least = 2 * layer + staged.sizes["lm_head"] + staged.pinned_nbytes
    for host in (4 * layer, 6 * layer):
        _, plan = place_on(staged, budgets(least, 2 * layer, host=host))
        assert plan.host_bytes <= host
        hosted = sum(staged.sizes[name] for name in plan.away("host"))
        assert plan.away("disk")
        assert hosted <= plan.host_bytes


@pytest.mark.usefixtures("no_working")
def test_the_first_alone_is_taken_where_all_fits_there_unless_both_are_named(
    checkpoint: Callable[..., Path],
) -> None:
    staged = staged_of(checkpoint())
    for total, used in ((staged.nbytes, 1), (staged.nbytes - 1, 2), ("min", 2)):
        _, plan = place_on(staged, budgets(total, total), fewest=True)
        assert len(plan.device_bytes) == used
    _, plan = place_on(staged, budgets(staged.nbytes, staged.nbytes))
    assert len(plan.device_bytes) == 2
    assert not plan.moving("host", "disk")


@pytest.mark.usefixtures("no_working")
def test_what_one_cannot_hold_several_can(checkpoint: Callable[..., Path]) -> None:
    staged = staged_of(checkpoint())
    with pytest.raises(BudgetError, match=r"cuda:0: A budget of .* is too small"):
        place_on(staged, budgets(1000, 1000))
    with pytest.raises(BudgetError, match="cuda:1: A budget of"):
        place_on(staged, budgets(staged.nbytes // 2, 1000))


def test_a_device_keeps_room_for_the_caches_of_its_own_layers(
    checkpoint: Callable[..., Path],
) -> None:
    staged, length = staged_of(checkpoint("gemma2")), 1 << 22
    geometry = read_geometry(staged.model.config)
    both = dict.fromkeys(GPUS[:2], ROOMY)
    placed, plan = place_on(staged, Budgets(both, ROOMY, length))
    rooms = make_rooms(placed, plan, both, both)
    work = Work(1, 1, length)
    cached = geometry.cached(work) * staged.dtype.itemsize
    mine = [room.taken(work) - CudaTransfer.outside for room in rooms.each]
    assert sum(mine) == pytest.approx(cached, rel=1e-4)
    assert mine[0] < mine[1]  # every other layer has a window
    small = [replace(room, nbytes=0, free=None) for room in rooms.each]
    with pytest.raises(BudgetError, match=r"device_memory leaves 0 B on cuda:0\. Give"):
        Rooms(small).admit((torch.ones(1, 4, dtype=torch.long),), {})
    enough = [replace(room, nbytes=ROOMY, free=None) for room in rooms.each]
    assert Rooms(enough).fits(work, work)
    assert not Rooms([enough[0], small[1]]).fits(work, work)
    assert Rooms(enough).chunk(work) is None


@pytest.mark.usefixtures("no_working")
def test_a_device_without_room_is_left_out_unless_it_is_named(
    checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    staged = staged_of(checkpoint())
    small = budgets(staged.nbytes // 2, 1000, staged.nbytes // 2)
    _, plan = place_on(staged, small, fewest=True)
    assert list(plan.device_bytes) == [GPUS[0], GPUS[2]]
    assert "Too little memory on one device: cuda:0, cuda:2 compute." in caplog.text
    with pytest.raises(BudgetError, match="cuda:1: A budget of 1000 B"):
        place_on(staged, small)
    with pytest.raises(BudgetError, match=r"^A budget of 1000 B"):
        place_on(staged, budgets(1000, 1000, 1000), fewest=True)


def test_sharing_with_the_cpu_is_for_one_device(
    checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    staged = staged_of(checkpoint())
    sharing = Sharing(lambda *_: pytest.fail("measured"))
    place_on(staged, budgets("min", "min"), sharing=sharing)
    assert "host_compute='auto' does nothing here: several devices" in caplog.text


def test_peft_and_transformers_know_where_layers_are(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    peft = pytest.importorskip("peft.utils.integrations")
    simulate(monkeypatch, 2)
    model = on_devices(checkpoint("qwen3_moe"))
    devices = model.hf_device_map
    assert {*devices} <= {name for name, _ in model.named_modules()}
    assert next(iter(devices.values())) == model.device
    layers = peft.get_layer_device_map(model)
    assert [layers[n].index for n in range(4)] == [0, 1, 0, 1]


@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_are_those_of_one(
    checkpointed: bool,
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    simulate(monkeypatch, 2)
    folder = checkpoint("llama")
    found = []
    for model in (on_devices(folder), stock(folder)):
        if checkpointed:
            model.train()
            model.gradient_checkpointing_enable()
        states = torch.nn.functional.one_hot(prompt % 64, 64).float().requires_grad_()
        model(inputs_embeds=states).logits.sum().backward()
        found.append(states.grad)
    assert torch.equal(*found)
