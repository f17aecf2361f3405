"""Caches in the host's memory: when they pay, and that sequences answer as alone.

Without a GPU stock's streams are stand-ins, which note who waits for whom.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from inspect import signature
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from rabbitllm import StreamedModel
from rabbitllm.batching import Batch, joining, memory, offloading
from rabbitllm.batching import batch as module
from rabbitllm.batching.cache import OffloadedCache, RowsCache
from rabbitllm.batching.offloading import can_offload, pass_seconds, pays
from rabbitllm.batching.sharing import CACHES
from rabbitllm.streaming.working import Work, read_geometry
from tests.rabbitllm.batching.test_batch import alone, prompts

GB = 1_000_000_000


def test_a_cache_comes_beside_the_weights_and_once_more_by_itself() -> None:
    assert pass_seconds(0.25, 13 * GB, 0, 52 * GB) == 0.25
    assert pass_seconds(0.25, 13 * GB, 5 * GB, 50 * GB) == pytest.approx(18 / 50 + 10 / 50)


def test_a_disk_that_is_waited_for_hides_the_cache() -> None:
    assert pass_seconds(13.0, 13 * GB, 5 * GB, 50 * GB) == pytest.approx(13.0 + 10 / 50)


@pytest.mark.parametrize(
    ("on_device", "on_host", "moved", "cached", "due"),
    [
        (8, 256, 13 * GB, 6 * GB, True),  # a small budget: 256 in 31 GB of link, or 8 in 13
        (200, 256, 7 * GB, 6 * GB, False),  # nearly as many have room without
        (64, 64, 7 * GB, GB, False),  # no more of them
        (8, 256, 0, 6 * GB, False),  # no weights cross the link
        (1, 2, 30 * GB, 60 * GB, False),  # long texts
    ],
)
def test_when_it_pays(on_device: int, on_host: int, moved: int, cached: int, due: bool) -> None:
    assert pays(on_device, on_host, moved, cached) is due


class Stream:
    """A stand-in for a CUDA stream."""

    waits: list[tuple[object, object]]
    device = torch.device("cuda")

    def wait_stream(self, other: Stream) -> None:
        self.waits.append((self, other))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """The device's own stream, where CPUs count as a GPU."""
    Stream.waits = []
    stream = Stream()
    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    for each in (module, memory):
        monkeypatch.setattr(each, "can_offload", lambda _: True)
    return stream


def read(model: StreamedModel, ids: list[list[int]], held: RowsCache) -> None:
    name = next(each for each in CACHES if each in signature(model.forward).parameters)
    model(torch.tensor(ids), use_cache=True, **{name: held.cache})


@pytest.fixture(autouse=True)
def events(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What layers are asked to do, by name and number; one that is away cannot take tokens."""
    told: list[tuple[str, int]] = []
    make = OffloadedCache.__init__

    def init(cache: OffloadedCache, *args: Any, **kwargs: Any) -> None:
        make(cache, *args, **kwargs)
        for index, layer in enumerate(cache.layers):
            watch(layer, index, told)

    monkeypatch.setattr(OffloadedCache, "__init__", init)
    return told


def watch(layer: Any, index: int, told: list[tuple[str, int]]) -> None:
    away = False
    prefetch, offload, update = layer.prefetch, layer.offload, layer.update

    def noted(name: str, original: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            nonlocal away
            away = name == "offload"
            told.append((name, index))
            original()

        return call

    def updated(*args: Any, **kwargs: Any) -> Any:
        assert not away, f"layer {index} is in the host's memory"
        return update(*args, **kwargs)

    layer.prefetch, layer.offload = noted("prefetch", prefetch), noted("offload", offload)
    layer.update = updated


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mixtral", "deepseek_v3"])
def test_sequences_that_come_and_go_answer_as_alone(
    load: Callable[..., StreamedModel],
    monkeypatch: pytest.MonkeyPatch,
    own: Stream,
    architecture: str,
) -> None:
    monkeypatch.setitem(joining.PASS_TOKENS, "cpu", 16)
    monkeypatch.setitem(joining.PROMPT_TOKENS, "cpu", 64)
    merged = 0
    lay_out = RowsCache.lay_out

    def noted(held: RowsCache, *args: Any) -> None:
        nonlocal merged
        merged += args[2] is not None
        lay_out(held, *args)

    monkeypatch.setattr(RowsCache, "lay_out", noted)
    monkeypatch.setattr(joining, "LEAST_CHUNK", 3)
    model = load(architecture)
    batch, rows = Batch(model, offloaded=True), []
    for i, prompt in enumerate(prompts()):
        rows.append(batch.add(prompt, max_new_tokens=4 + 3 * i, do_sample=False))
        batch.step()
        assert batch._passes._held is None or isinstance(batch._passes._held.cache, DynamicCache)
        assert batch._passes._held is None or batch._passes._held.cache.offloading
    batch.run()
    assert merged
    for row in rows:
        assert row.tokens == alone(model, row.prompt, row.limit)


def test_layers_come_to_be_changed_and_go_again(
    load: Callable[..., StreamedModel], own: Stream, events: list[tuple[str, int]]
) -> None:
    model = load()
    layers = model.config.num_hidden_layers
    held = RowsCache(model.config, model.device)
    read(model, [[5, 6, 7], [8, 9, 10]], held)
    held.columns = 3
    assert [name for name, _ in events].count("offload") == layers
    ahead = held.cache.prefetch_stream
    for change in (lambda: held.lay_out([1], 3), lambda: held.settle([1], 0)):
        events.clear()
        Stream.waits.clear()
        change()
        names = ("prefetch", "offload")
        each = [(name, index) for index in range(layers) for name in names]
        assert events == [*each, ("prefetch", 0)]  # which the next pass begins with
        assert Stream.waits == [(own, ahead), (ahead, own)]
    events.clear()
    held.settle([0], 0)
    assert not events


def test_it_is_chosen_where_it_pays(
    load: Callable[..., StreamedModel], monkeypatch: pytest.MonkeyPatch, own: Stream
) -> None:
    model = load(host_memory="min")
    (room,) = model._rooms.each
    room.free = None
    room.nbytes = room.needed(Work(6, 1, 99, logits=6, offloaded=True))
    seen: list[tuple[int, ...]] = []

    def paid(*figures: int) -> bool:
        seen.append(figures)
        return len(seen) == 1

    monkeypatch.setattr(memory, "pays", paid)
    batch = Batch(model)
    rows = [batch.add(prompt, max_new_tokens=10, do_sample=False) for prompt in prompts([90] * 6)]
    batch.step()
    (figures,) = seen
    on_device, on_host, moved, cached = figures
    assert 1 <= on_device < on_host == 6
    layer = model.model.layers[0]
    assert moved >= 4 * sum(weight.numel() * 4 for weight in layer.parameters() if weight.dim() > 1)
    geometry = read_geometry(model.config)
    assert cached == on_host * 100 * geometry.kept * len(geometry.windows) * 4
    assert batch.offloaded
    batch.run()
    for row in rows:
        assert row.tokens == alone(model, row.prompt, 10)
    batch.add([5, 6], max_new_tokens=1)
    batch.run()
    assert len(seen) > 1
    assert not batch.offloaded


def test_experts_that_come_as_tokens_are_sent_to_them_count(
    load: Callable[..., StreamedModel], monkeypatch: pytest.MonkeyPatch, own: Stream
) -> None:
    model = load("mixtral", device_memory="min")
    seen: list[tuple[int, ...]] = []
    monkeypatch.setattr(memory, "pays", lambda *figures: seen.append(figures))
    batch = Batch(model)
    batch.add([5, 6], max_new_tokens=1)
    batch.run()
    ((_, _, moved, _),) = seen
    layer = model.model.layers[0].mlp.experts
    expert = sum(weight[0].numel() * 4 for weight in layer.parameters())
    routes = model.config.num_experts_per_tok * model.config.num_hidden_layers
    others = sum(stage.nbytes for stage in model._pipeline._bindings)
    assert moved == others + routes * expert


def test_the_hosts_memory_bounds_it(
    load: Callable[..., StreamedModel], monkeypatch: pytest.MonkeyPatch, own: Stream
) -> None:
    model = load()
    batch = Batch(model, offloaded=True)
    row = batch._memory.cached(1, 30)
    monkeypatch.setattr(memory, "available_host_memory", lambda: 3 * offloading.PINNED * row)
    for prompt in prompts([20] * 6):
        batch.add(prompt, max_new_tokens=10)
    batch.step()
    assert len(batch.running) == 3


def test_without_one_gpu_it_is_refused_or_not_chosen(load: Callable[..., StreamedModel]) -> None:
    model = load()
    assert not can_offload(model)
    with pytest.raises(ValueError, match="the model is on cpu"):
        Batch(model, offloaded=True)
    batch = Batch(model)
    batch.add([5, 6], max_new_tokens=1)
    batch.run()
    assert not batch.offloaded
