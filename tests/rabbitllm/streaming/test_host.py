"""Modules that the CPU computes for a device, which is simulated: see `simulated`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rabbitllm import StreamedModel, auto
from rabbitllm.streaming import host, landing
from rabbitllm.streaming.landing import Landing
from rabbitllm.streaming.picking import HOST
from rabbitllm.streaming.roads import Roads
from tests.rabbitllm.streaming.simulated import simulate

ROADS = Roads(link=1e6, host={1: 6e5, 2: 6e5, 4: 6e5, 8: 1e4}, threads=1, crossing=0.0)
"""Of a machine so slow that a tiny model is worth sharing out."""


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch)
    monkeypatch.setattr(auto, "roads_of", lambda *_: ROADS)


@pytest.fixture
def shared(streamed: Callable[..., StreamedModel]) -> Callable[..., StreamedModel]:
    def load(folder: Path, **options: Any) -> StreamedModel:
        least = {"device_memory": "min", "host_memory": 1 << 30, "attn_implementation": "eager"}
        return streamed(folder, **least | {"host_compute": "auto"} | options)

    return load


def computed_by(model: StreamedModel, ids: torch.Tensor) -> dict[str, str]:
    """Module with weights -> the thread that computes it in a pass."""
    found: dict[str, str] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda *_: found.update({name: threading.current_thread().name})

    hooks = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if name.endswith(("proj", "lm_head"))
    ]
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "phi"])
def test_answers_are_stocks_and_only_inputs_and_outputs_cross(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    architecture: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = checkpoint(architecture)
    model, reference = shared(folder), stock(folder, attn_implementation="eager")
    on_host = model.streaming_plan.on_host()
    assert on_host
    assert all(name.endswith("mlp") for name in on_host)
    crossed: list[tuple[tuple[int, ...], torch.device]] = []

    def take(value: torch.Tensor) -> torch.Tensor:
        crossed.append((value.shape, HOST))
        return value

    def bring(value: torch.Tensor, device: torch.device) -> torch.Tensor:
        crossed.append((value.shape, device))
        return value

    monkeypatch.setattr(Landing, "_take", lambda _, value: take(value))
    monkeypatch.setattr(landing, "send_to_device", bring)
    options = {"max_new_tokens": 6, "do_sample": False}
    output = model.generate(prompt[:1], **options)
    assert torch.equal(output, reference.generate(prompt[:1], **options))
    width = model.config.hidden_size
    assert crossed == [((1, 1, width), place) for place in [HOST, prompt.device] * 5 * len(on_host)]


def test_short_passes_compute_where_weights_lie_and_long_ones_on_the_device(
    checkpoint: Callable[..., Path], shared: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    model = shared(checkpoint())
    plan = model.streaming_plan
    assert plan.host_tokens == 4
    on_host = set(plan.on_host())
    assert 0 < len(on_host) < 4
    size = sum(stage.nbytes for stage in model._pipeline._bindings if stage.name in on_host)

    def moved(ids: torch.Tensor) -> tuple[set[str], int, int]:
        before = model.streaming_stats()
        threads = computed_by(model, ids)
        after = model.streaming_stats()
        there = {name.rpartition(".")[0] for name in threads if threads[name] != own}
        keys = ("bytes_on_host", "bytes_to_device")
        return there, *(after[key] - before[key] for key in keys)

    own = threading.current_thread().name
    for ids in (prompt[:1, :1], prompt[:1, :4], prompt[:, :2]):
        moved(ids)  # what comes next is known behind the first of its kind
        there, computed, crossed = moved(ids)
        assert (there, computed) == (on_host, size)
        everything = sum(stage.nbytes for stage in model._pipeline._bindings)
        assert crossed == everything - size
    for ids in (prompt[:1, :5], prompt):
        moved(ids)
        assert moved(ids) == (set(), 0, everything)


def test_the_stages_behind_a_prompt_are_those_of_a_short_pass(
    checkpoint: Callable[..., Path], shared: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    model = shared(checkpoint())
    model.generate(prompt[:1], max_new_tokens=3)  # both orders are known from here on
    before = model.streaming_stats()["bytes_to_device"]
    model.generate(prompt[:1], max_new_tokens=3)
    moved = model.streaming_stats()["bytes_to_device"] - before
    streaming = sum(stage.nbytes for stage in model._pipeline._bindings)
    hosted = set(model.streaming_plan.on_host())
    size = sum(stage.nbytes for stage in model._pipeline._bindings if stage.name in hosted)
    # A prompt's stages all come, and the others' for each of two tokens. Behind the last, what a
    # short pass needs first is on its way; at most as much as there are slots was in vain.
    slots = sum(slot.buffer.numel() for lane in model._pipeline._lanes for slot in lane.slots)
    least = streaming + 2 * (streaming - size)
    assert least <= moved <= least + slots < streaming * 3


def test_adapters_and_weights_of_the_users_have_the_module_compute_on_the_device(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    folder, ids = checkpoint(), prompt[:1, :1]
    model, reference = shared(folder), stock(folder, attn_implementation="eager")
    name, *others = model.streaming_plan.on_host()
    assert f"{name}.up_proj" in computed_by(model, ids)
    with torch.no_grad():
        for each in (model, reference):
            module = each.get_submodule(name)
            torch.manual_seed(0)
            module.up_proj.extra = torch.nn.Linear(64, 96, bias=False)
            module.up_proj.register_forward_hook(
                lambda module, given, output: output + module.extra(*given)
            )
        assert torch.equal(model(ids).logits, reference(ids).logits)
        threads = computed_by(model, ids)
        there = {n.rpartition(".")[0] for n, who in threads.items() if who.startswith(host.WORKER)}
        assert there == set(others)
        weight = torch.randn(96, 64)
        for each in (model, reference):
            each.get_submodule(others[0]).gate_proj.weight = torch.nn.Parameter(weight)
        assert torch.equal(model(ids).logits, reference(ids).logits)


def test_gradients_flow_through_modules_that_compute_on_the_host_otherwise(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    folder, ids = checkpoint(), prompt[:1, :2]
    model, reference = shared(folder), stock(folder, attn_implementation="eager")
    with torch.no_grad():
        model(ids)
    gradients = []
    for each in (model, reference):
        embedded = each.get_input_embeddings()(ids).detach().requires_grad_()
        each(inputs_embeds=embedded).logits.sum().backward()
        gradients.append(embedded.grad)
    assert torch.equal(*gradients)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    assert model.streaming_stats()["bytes_on_host"] > 0


def test_inference_mode_and_autocast(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, ids = checkpoint(), prompt[:1, :1]
    model, reference = shared(folder), stock(folder, attn_implementation="eager")
    with torch.inference_mode():
        assert torch.equal(model(ids).logits, reference(ids).logits)
    computed = model.streaming_stats()["bytes_on_host"]
    assert computed > 0
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: True)
    with torch.no_grad():
        model(ids)
    assert model.streaming_stats()["bytes_on_host"] == computed


class BrokenError(Exception):
    """What a user's hook raises."""


@pytest.mark.parametrize("error", [BrokenError, KeyboardInterrupt])
def test_the_answer_behind_an_error_or_an_interrupt_there_is_right(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    error: type[BaseException],
) -> None:
    folder, ids = checkpoint(), prompt[:1, :1]
    model, reference = shared(folder), stock(folder, attn_implementation="eager")
    name = model.streaming_plan.on_host()[-1]

    def fail(*_: object) -> None:
        raise error

    for part in (name, f"{name}.up_proj"):  # here, and where the host computes
        hook = model.get_submodule(part).register_forward_pre_hook(fail)
        with torch.no_grad(), pytest.raises(error):
            model(ids)
        hook.remove()
        for given in (ids, prompt, ids):
            with torch.no_grad():
                assert torch.equal(model(given).logits, reference(given).logits)


def test_a_worker_has_threads_of_its_own() -> None:
    mine = torch.get_num_threads()
    worker = host.HostWorker(mine + 2)
    assert worker.run(torch.get_num_threads) == mine + 2
    assert worker.run(torch.get_num_threads) == mine + 2
    assert torch.get_num_threads() == mine
    found: list[int] = []
    other = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [mine]
    assert worker.run(torch.is_grad_enabled) is False
    with torch.inference_mode():
        assert worker.run(lambda: torch.ones(1).is_inference())


def test_what_is_computed_there_is_given_back_with_the_model(
    checkpoint: Callable[..., Path], shared: Callable[..., StreamedModel], prompt: torch.Tensor
) -> None:
    model = shared(checkpoint())
    with torch.no_grad():
        model(prompt[:1, :1])
    assert any(thread.name.startswith(host.WORKER) for thread in threading.enumerate())
    del model
    assert not any(thread.name.startswith(host.WORKER) for thread in threading.enumerate())


def test_it_is_off_by_default_and_says_where_it_does_nothing(
    checkpoint: Callable[..., Path],
    shared: Callable[..., StreamedModel],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    assert not shared(checkpoint(), host_compute=False).streaming_plan.on_host()
    with pytest.raises(ValueError, match=r"host_compute='on' .* Use 'auto' or False"):
        shared(checkpoint(), host_compute="on")
    assert not shared(checkpoint(), device_memory=1 << 32).streaming_plan.on_host()
    assert "no layer waits in host memory" in caplog.text
    mixture = checkpoint("mixtral")
    assert not shared(mixture, device_memory=1 << 32).streaming_plan.on_host()
    assert "no module computes by itself" in caplog.text
    quick = Roads(link=1e9, host={1: 1.0}, threads=1, crossing=0.0)
    monkeypatch.setattr(auto, "roads_of", lambda *_: quick)
    for folder in (checkpoint(), mixture):
        caplog.clear()
        plan = shared(folder).streaming_plan
        assert not plan.on_host()
        assert not plan.shared
        assert "the link alone is as quick" in caplog.text


def test_what_is_compressed_for_the_link_lies_plain_where_the_cpu_computes(
    build: Callable[..., PreTrainedModel],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    prompt: torch.Tensor,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "checkpoint"
    wide = {"hidden_size": 256, "intermediate_size": 384}  # so that weights are worth encoding
    build("llama", torch.bfloat16, **wide).save_pretrained(folder)
    reference = stock(folder, attn_implementation="eager")
    stored = {"compression": "lossless", "layer_shards_saving_path": tmp_path / "stores"}
    model = shared(folder, **stored)
    plan = model.streaming_plan
    sizes = {stage.name: (stage.nbytes, stage.stored_nbytes) for stage in model._pipeline._bindings}
    on_host = plan.on_host()
    assert 0 < len(on_host) < 4
    assert all(sizes[name][0] == sizes[name][1] for name in on_host)
    others = set(plan.streamed("host")) - set(on_host)
    assert all(sizes[name][0] > sizes[name][1] for name in others if name.endswith("mlp"))
    taken = sum(sizes[name][1] for name in plan.streamed("host"))
    assert plan.host_bytes == pytest.approx(taken, rel=0.01)  # how far it packs is not yet known
    with torch.no_grad():
        for ids in (prompt, prompt[:1, :1], prompt, prompt[:1, :2]):
            assert torch.equal(model(ids).logits, reference(ids).logits)
    assert model.streaming_stats()["bytes_on_host"] > 0
    # With no byte to spare in host memory what is there stays encoded.
    tight = shared(folder, host_memory=plan.host_bytes - 1, **stored).streaming_plan
    assert tight.host_bytes <= plan.host_bytes - 1
    assert len(tight.on_host()) < len(on_host)


def test_a_lora_adapter_learns_and_answers_as_on_the_stock_model(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    prompt: torch.Tensor,
) -> None:
    peft = pytest.importorskip("peft")
    folder, ids = checkpoint(), prompt[:1, :2]
    answers = []
    for model in (shared(folder), stock(folder, attn_implementation="eager")):
        torch.manual_seed(0)
        config = peft.LoraConfig(target_modules=["up_proj"], layers_to_transform=[0, 1, 3])
        adapted = peft.get_peft_model(model, config)
        optimiser = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=1.0)
        for _ in range(2):
            adapted(ids, labels=ids).loss.backward()
            optimiser.step()
            optimiser.zero_grad()
        with torch.no_grad():
            answers.append(adapted(ids).logits)
    assert torch.equal(*answers)
