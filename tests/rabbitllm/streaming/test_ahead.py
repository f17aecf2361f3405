"""Launching goes on while the CPU computes; the device waits for it, or only seems to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from rabbitllm import StreamedModel, auto
from rabbitllm.streaming import ahead, host
from rabbitllm.streaming.ahead import Ahead, Job
from rabbitllm.streaming.binding import bound
from rabbitllm.streaming.buffers import host_buffer
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.page import Page
from rabbitllm.streaming.promised import Promises
from rabbitllm.streaming.roads import Roads
from rabbitllm.streaming.weights import Stage, Weight
from rabbitllm.utils.workers import Workers
from tests.rabbitllm.streaming.simulated import Bell, promise, simulate

ROADS = Roads(link=1e6, host={1: 1e6, 2: 1e6, 4: 1e6}, threads=1, crossing=0.0, ahead=True)
"""Of a machine so slow that a tiny model is worth sharing out."""


class Held:
    """Keeps the CPU from computing until somebody waits for it, and has launching go on.

    Attributes:
        begun: the modules that have begun to be launched.
        look: called whenever somebody has to wait.
    """

    def __init__(self, model: nn.Module, bell: Bell, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun: list[str] = []
        self.look: Callable[[], None] = lambda: None
        self._goes_on = threading.Event()
        self._bell, bell.stands = bell, False
        for name, module in model.named_modules():
            if name.endswith(("self_attn", "mlp", "lm_head")):
                module.register_forward_pre_hook(partial(self._note, name))
        own = nn.Linear.forward

        def compute(module: nn.Linear, given: torch.Tensor) -> torch.Tensor:
            if threading.current_thread().name.startswith(host.WORKER) and not bell.stands:
                self._goes_on.wait()
            return own(module, given)

        monkeypatch.setattr(nn.Linear, "forward", compute)
        monkeypatch.setattr(ahead, "wait", self._wait)

    def end(self) -> None:
        """Holds nothing from here on."""
        self._bell.stands = True

    def _note(self, name: str, *_: object) -> None:
        self.begun.append(name)

    def _wait(self, futures: list[Future[None]]) -> None:
        if self._bell.stands:
            wait(futures)
            return
        assert not futures[0].done()
        self.look()
        self._goes_on.set()
        wait(futures)
        self._goes_on.clear()


@pytest.fixture(autouse=True)
def bell(monkeypatch: pytest.MonkeyPatch) -> Bell:
    simulate(monkeypatch)
    monkeypatch.setattr(auto, "roads_of", lambda *_: ROADS)
    return promise(monkeypatch)


@pytest.fixture
def model(
    checkpoint: Callable[..., Path], streamed: Callable[..., StreamedModel]
) -> Iterator[StreamedModel]:
    least = {"device_memory": "min", "host_memory": 1 << 30, "attn_implementation": "eager"}
    model = streamed(checkpoint(), **least, host_compute="auto")
    assert len(model.streaming_plan.on_host()) > 1
    with torch.no_grad():
        yield model


@pytest.fixture
def reference(
    checkpoint: Callable[..., Path], stock: Callable[..., PreTrainedModel]
) -> PreTrainedModel:
    return stock(checkpoint(), attn_implementation="eager")


@pytest.fixture
def held(
    model: StreamedModel, bell: Bell, token: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> Held:
    """Behind a first pass of one token: its form is known."""
    model(token)
    return Held(model, bell, monkeypatch)


@pytest.fixture
def token(prompt: torch.Tensor) -> torch.Tensor:
    return prompt[:1, :1]


def hosted_bytes(model: StreamedModel) -> int:
    on_host = model.streaming_plan.on_host()
    return sum(stage.nbytes for stage in model._pipeline._bindings if stage.name in on_host)


def in_place(model: StreamedModel, name: str) -> bool:
    """Whether a module has the weights that lie in host memory."""
    hosted = model._pipeline._host._modules[name]
    found = {
        now is weight for now, weight in zip(bound(hosted._bindings), hosted._weights, strict=True)
    }
    assert len(found) == 1
    return found.pop()


def test_answers_are_stocks_and_only_outputs_of_a_known_form_are_promised(
    model: StreamedModel, reference: PreTrainedModel, prompt: torch.Tensor, bell: Bell
) -> None:
    on_host, size = len(model.streaming_plan.on_host()), hosted_bytes(model)
    computed = promised = 0
    for ids, short, known in (
        (prompt[:1, :1], True, False),
        (prompt[:1, :1], True, True),
        (prompt[:, :2], True, False),
        (prompt, False, False),
        (prompt[:, :2], True, True),
        (prompt[:1, :1], True, True),
    ):
        assert torch.equal(model(ids).logits, reference(ids).logits)
        promised += on_host * known
        computed += size * short
        assert bell.waited == bell.rung == promised
        assert model.streaming_stats()["bytes_on_host"] == computed
    options = {"max_new_tokens": 6, "do_sample": False}
    output = model.generate(prompt[:1], **options)
    assert torch.equal(output, reference.generate(prompt[:1], **options))
    assert bell.rung == promised + 5 * on_host


def test_what_comes_next_is_launched_while_the_cpu_computes(
    model: StreamedModel, held: Held, token: torch.Tensor, bell: Bell
) -> None:
    seen: list[list[str]] = []
    names = model.streaming_plan.on_host()

    def look() -> None:
        computing = names[len(seen)]
        behind = held.begun.index(computing)
        seen.append(held.begun[behind + 1 :])
        assert bell.rung == bell.waited - 1
        assert [name for name in names if in_place(model, name)] == [computing]

    held.look = look
    before = model.streaming_stats()["bytes_on_host"]
    model(token)
    order = held.begun
    places = [order.index(name) for name in names]
    ends = [order.index(name) + 1 for name in names[1:]] + [len(order)]
    assert seen == [order[place + 1 : end] for place, end in zip(places, ends, strict=True)]
    assert min(map(len, seen)) > 0
    assert not any(in_place(model, name) for name in names)
    assert model.streaming_stats()["bytes_on_host"] - before == hosted_bytes(model)


def test_nobody_launches_further_ahead_than_some_blocks(
    model: StreamedModel, held: Held, token: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "BLOCKS", 0)
    waited_behind: list[str] = []
    held.look = lambda: waited_behind.append(held.begun[-1])
    model(token)
    *names, last = model.streaming_plan.on_host()
    # A block's end belongs to it, and behind the last block there is the head.
    assert waited_behind == [*names, "lm_head" if last == "model.layers.3.mlp" else last]


@pytest.mark.parametrize("last", [False, True])
def test_an_error_there_is_raised_where_it_is_waited_for_and_names_the_module(
    model: StreamedModel,
    reference: PreTrainedModel,
    prompt: torch.Tensor,
    token: torch.Tensor,
    bell: Bell,
    monkeypatch: pytest.MonkeyPatch,
    last: bool,
) -> None:
    name = model.streaming_plan.on_host()[-1 if last else 0]
    model(token)
    inner, own = model.get_submodule(f"{name}.down_proj"), nn.Linear.forward

    def fail(module: nn.Linear, given: torch.Tensor) -> torch.Tensor:
        if module is inner:
            raise MemoryError("no room")
        return own(module, given)

    said = rf"{name} failed on the CPU.*MemoryError: no room"
    with monkeypatch.context() as failing:
        failing.setattr(nn.Linear, "forward", fail)
        with pytest.raises(RuntimeError, match=said):
            model(token)
    assert bell.rung == bell.waited
    for ids in (token, prompt, token):
        assert torch.equal(model(ids).logits, reference(ids).logits)


def test_an_interrupt_waits_for_the_cpu_and_then_the_model_is_as_before(
    model: StreamedModel,
    reference: PreTrainedModel,
    held: Held,
    token: torch.Tensor,
    bell: Bell,
) -> None:
    waited: list[str] = []
    held.look = lambda: waited.append(held.begun[-1])
    name = model.streaming_plan.on_host()[0]
    behind = held.begun

    def interrupt(*_: object) -> None:
        if name in behind:
            raise KeyboardInterrupt

    hooks = [
        m.register_forward_pre_hook(interrupt)
        for n, m in model.named_modules()
        if n.endswith("self_attn")
    ]
    with pytest.raises(KeyboardInterrupt):
        model(token)
    assert len(waited) == 1
    assert bell.rung == bell.waited
    assert not in_place(model, name)
    for hook in hooks:
        hook.remove()
    held.end()
    assert torch.equal(model(token).logits, reference(token).logits)


def test_a_second_interrupt_leaves_the_job_to_the_next_pass(
    model: StreamedModel,
    reference: PreTrainedModel,
    held: Held,
    token: torch.Tensor,
    bell: Bell,
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    held.look = interrupt
    with pytest.raises(KeyboardInterrupt):
        model(token)
    assert bell.rung < bell.waited
    held.look = lambda: None
    model(token)
    assert bell.rung == bell.waited
    held.end()
    assert torch.equal(model(token).logits, reference(token).logits)


def test_modules_with_hooks_inside_are_waited_for_at_once(
    model: StreamedModel, reference: PreTrainedModel, token: torch.Tensor, bell: Bell
) -> None:
    names = model.streaming_plan.on_host()
    for each in (model, reference):
        inner: Any = each.get_submodule(names[0]).up_proj
        inner.register_forward_hook(lambda _, given, output: output * 2)
    for passes in range(3):
        assert torch.equal(model(token).logits, reference(token).logits)
        assert bell.rung == passes * (len(names) - 1)


def test_attention_that_is_not_torchs_own_has_nobody_launch_ahead(
    model: StreamedModel, token: torch.Tensor, bell: Bell
) -> None:
    model(token)
    model.config._attn_implementation_internal = "flash_attention_2"
    for layer in model.model.layers:
        layer.self_attn.config = type(layer.self_attn.config)(attn_implementation="eager")
    model(token)
    assert bell.rung == 0


@pytest.mark.parametrize("fate", ["computed", "failed", "cancelled"])
def test_whatever_becomes_of_a_job_the_device_goes_on(bell: Bell, fate: str) -> None:
    page = Page(buffer := host_buffer(64), buffer)
    output = torch.zeros(4)
    promise = Promises([page], bell).promise(output.shape, output.dtype)
    job = Job(Stage("", (), ()), (), (), promise, 0.0)
    given: list[Callable[[], None]] = []
    future: Future[None] = Future()

    def submit(compute: Callable[[], None]) -> Future[None]:
        given.append(compute)
        return future

    job.start(submit, lambda: output if fate == "computed" else output / output[:0])
    assert bell.rung == 0
    if fate == "computed":
        given[0]()
    elif fate == "failed":
        with pytest.raises(RuntimeError):
            given[0]()
    else:
        future.cancel()
    assert bell.rung == 1  # before anybody who waits for its end hears of that


def test_an_interrupt_that_keeps_the_future_back_still_waits_for_the_job(bell: Bell) -> None:
    page = Page(buffer := host_buffer(64), buffer)
    output, computed = torch.zeros(4), list[bool]()
    promise = Promises([page], bell).promise(output.shape, output.dtype)
    stage = Stage("mlp", (), (Weight("mlp.w", (), torch.float32, torch.Size([4])),))
    workers, goes_on = Workers(1, host.WORKER), threading.Event()
    under_way = Ahead(Meter())

    def submit(compute: Callable[[], None]) -> Future[None]:
        future = workers.submit(compute)
        if not computed and not goes_on.is_set():
            goes_on.set()
            raise KeyboardInterrupt  # behind it, and before its future has a name
        return future

    def forward() -> torch.Tensor:
        goes_on.wait()
        computed.append(True)
        return output

    with pytest.raises(KeyboardInterrupt):
        under_way.begin(Job(stage, (), (), promise, 0.0), submit, forward)
    under_way.drop()
    assert computed
    workers.close()
