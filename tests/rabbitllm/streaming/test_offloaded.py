"""Stock's cache in the host's memory: what it brings ahead, and when. Streams are stand-ins."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from harness.measuring import caches
from rabbitllm import AutoModel, StreamedModel
from rabbitllm.streaming.offloaded import keep_in_order

EVENTS: list[tuple[str, object]] = []


class Stream:
    """A stand-in for a CUDA stream."""

    device = torch.device("cuda")

    def wait_stream(self, other: Stream) -> None:
        EVENTS.append(("wait", (self, other)))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class Noted(DynamicCache):
    """Tells when it brings a layer."""

    def prefetch(self, layer_idx: int, *args: Any, **kwargs: Any) -> None:
        EVENTS.append(("prefetch", layer_idx))
        super().prefetch(layer_idx, *args, **kwargs)


@pytest.fixture
def computing(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """The stream that a GPU, which is the CPU, computes in."""
    stream = Stream()
    EVENTS.clear()
    monkeypatch.setattr(torch, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    return stream


@pytest.fixture
def model(checkpoint: Callable[..., Path]) -> StreamedModel:
    return AutoModel.from_pretrained(checkpoint("llama"), device="cpu")


def run(model: StreamedModel, cache: DynamicCache) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        logits: torch.Tensor = model(ids, use_cache=True, **caches.given(model, cache)).logits
    return logits


def test_what_comes_ahead_waits_for_what_has_been_launched(
    model: StreamedModel, computing: Stream
) -> None:
    cache = Noted(config=model.config, offloading=True)
    for _ in range(2):
        run(model, cache)
    ahead = cache.prefetch_stream
    brought = [at for at, (event, _) in enumerate(EVENTS) if event == "prefetch"]
    assert len(brought) >= 2 * model.config.num_hidden_layers
    assert all(EVENTS[at - 1] == ("wait", (ahead, computing)) for at in brought)


def test_a_cache_is_told_once_and_goes_with_who_holds_it(
    model: StreamedModel, computing: Stream
) -> None:
    cache = Noted(config=model.config, offloading=True)
    keep_in_order([cache])
    told = vars(cache)["prefetch"]
    keep_in_order([None, cache, 5])
    assert vars(cache)["prefetch"] is told
    gone = weakref.ref(cache)
    gc.disable()
    try:
        del cache, told
        assert gone() is None
    finally:
        gc.enable()


def test_another_cache_is_left_as_it_is(model: StreamedModel, computing: Stream) -> None:
    cache = Noted(config=model.config)
    expected = run(model, DynamicCache(config=model.config))
    assert torch.equal(run(model, cache), expected)
    assert "prefetch" not in vars(cache)
    assert not EVENTS
