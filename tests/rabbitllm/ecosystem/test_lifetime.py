"""What a model took goes with its last reference, at once, as stock's does: nothing collects it."""

from __future__ import annotations

import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import PreTrainedModel, TextIteratorStreamer

from rabbitllm import CheckpointError, StreamedModel
from rabbitllm.prompt import encode_chat
from rabbitllm.text import generate
from tests.patience import PATIENCE

Use = Callable[[Any, torch.Tensor], object]
FEW = {"max_new_tokens": 4, "do_sample": False}


class StopError(RuntimeError):
    pass


def nothing(model: Any, prompt: torch.Tensor) -> None:
    pass


def forward(model: Any, prompt: torch.Tensor) -> None:
    model(prompt)


def greedy(model: Any, prompt: torch.Tensor) -> None:
    model.generate(prompt, **FEW)


def beams(model: Any, prompt: torch.Tensor) -> None:
    model.generate(prompt, num_beams=2, **FEW)


def static_cache(model: Any, prompt: torch.Tensor) -> None:
    model.generate(prompt, cache_implementation="static", **FEW)


def prompt_lookup(model: Any, prompt: torch.Tensor) -> None:
    model.generate(prompt[:1], prompt_lookup_num_tokens=2, **FEW)


def error_in_a_block(model: Any, prompt: torch.Tensor) -> None:
    def stop(*_: object) -> None:
        raise StopError

    model.model.layers[2].register_forward_pre_hook(stop)
    with pytest.raises(StopError):
        model.generate(prompt, **FEW)


def chat(model: Any, prompt: torch.Tensor) -> None:
    ids = encode_chat(model, [{"role": "user", "content": "hello"}])
    generate(model, ids, lambda _: None, max_new_tokens=4)


def streamer(model: Any, prompt: torch.Tensor) -> None:
    stream = TextIteratorStreamer(model.tokenizer)
    options = {"inputs": prompt[:1], "streamer": stream} | FEW
    thread = threading.Thread(target=model.generate, kwargs=options)
    thread.start()
    assert "".join(stream)
    thread.join(PATIENCE)


def adapter(model: Any, prompt: torch.Tensor) -> None:
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.generate(input_ids=prompt, **FEW)


USES = [
    nothing,
    forward,
    greedy,
    beams,
    static_cache,
    prompt_lookup,
    error_in_a_block,
    adapter,
]


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def parts_of(model: PreTrainedModel) -> list[weakref.ref[Any]]:
    """Weak references to all that must go with a model."""
    parts: list[Any] = [*model.modules(), *model.parameters(), *model.buffers()]
    if isinstance(model, StreamedModel):
        pipeline = model._pipeline
        (lane,) = pipeline._lanes
        parts += [pipeline, pipeline.meter, lane, lane.transfer, lane.transfer.reader]
        parts += [slot.buffer for slot in lane.slots]
    return [weakref.ref(part) for part in parts]


def threads() -> set[threading.Thread]:
    return {each for each in threading.enumerate() if each.name.startswith("rabbitllm")}


def held_files(folder: Path) -> list[str]:
    """Descriptors and mappings that this process has of a folder's files."""
    if not Path("/proc/self/fd").is_dir():
        return []
    links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.exists()]
    return [
        line
        for line in [*links, *Path("/proc/self/maps").read_text().splitlines()]
        if str(folder) in line
    ]


def check_gone(load: Callable[[], Any], folder: Path, use: Callable[[Any], object]) -> None:
    """Whatever `load` and `use` left is gone once the model is."""
    before = threads()
    model = load()
    use(model)
    parts = parts_of(model)
    assert held_files(folder) or not isinstance(model, StreamedModel)
    del model
    assert [part() for part in parts if part() is not None] == []
    assert threads() <= before
    assert held_files(folder) == []


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
@pytest.mark.parametrize("kind", ["stock", "min", "auto"])
def test_nothing_outlives_the_model(
    copied: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    uncollected: None,
    kind: str,
    use: Use,
) -> None:
    folder = copied()
    load = {
        "stock": lambda: stock(folder),
        "min": lambda: streamed(folder),
        "auto": lambda: streamed(folder, host_memory="auto"),
    }[kind]
    check_gone(load, folder, lambda model: use(model, prompt))


@pytest.mark.parametrize("use", [chat, streamer], ids=lambda use: use.__name__)
def test_nothing_outlives_a_conversation(
    copied_talker: Path,
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    uncollected: None,
    use: Use,
) -> None:
    check_gone(lambda: streamed(copied_talker), copied_talker, lambda model: use(model, prompt))


@pytest.mark.parametrize("architecture", ["llama-tied", "mixtral", "deepseek_v3"])
def test_nothing_of_any_layout_outlives_the_model(
    copied: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
    uncollected: None,
    architecture: str,
) -> None:
    folder = copied(architecture)
    load = lambda: streamed(folder, layer_shards_saving_path=tmp_path / "store")  # noqa: E731
    check_gone(load, tmp_path, lambda model: greedy(model, prompt))


def test_nothing_outlives_a_model_whose_reads_failed(
    copied: Callable[..., Path],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    uncollected: None,
) -> None:
    folder = copied()

    def spoil(model: Any) -> None:
        model(prompt)
        os.truncate(folder / "model.safetensors", 5000)
        for _ in range(2):
            with pytest.raises(CheckpointError):
                model(prompt)

    check_gone(lambda: streamed(folder), folder, spoil)


def test_a_part_that_is_kept_goes_on_without_the_model(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    streamed: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    uncollected: None,
) -> None:
    reference, kept = stock(checkpoint()), streamed(checkpoint()).model
    assert torch.equal(kept(prompt).last_hidden_state, reference.model(prompt).last_hidden_state)
    del kept
    forward = streamed(checkpoint()).forward
    assert torch.equal(forward(prompt).logits, reference(prompt).logits)
