from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel
from typing_extensions import override

from rabbitllm import AutoModel, StreamedModel
from rabbitllm.streaming import crossing, several
from rabbitllm.streaming.placeholder import Placeholder
from rabbitllm.streaming.staged import StagedModel
from rabbitllm.streaming.stages import REST, block_of, find_blocks
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
            self.memory[shelf._memory.untyped_storage().data_ptr()] = where
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
