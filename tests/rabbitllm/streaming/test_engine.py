from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from typing_extensions import override

from rabbitllm.checkpoint.index import read_index
from rabbitllm.prepare import prepare
from rabbitllm.streaming.engine import stream
from rabbitllm.streaming.pipeline import Options, Pipeline
from rabbitllm.streaming.placeholder import Placeholder
from rabbitllm.streaming.plan import Place
from rabbitllm.streaming.planning import make_plan
from rabbitllm.streaming.stages import find_stages
from rabbitllm.streaming.structure import find_structure

CPU, SECOND = torch.device("cpu"), torch.device("cpu", 1)
WIDTH = 64


class Quantised(GradientCheckpointingLayer):
    """A layer of whole numbers and scales, which are parameters, or buffers."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.hold(kind, "weight", torch.empty(WIDTH, WIDTH, dtype=torch.int8))
        self.hold(kind, "scales", torch.empty(WIDTH, dtype=torch.float16))

    def hold(self, kind: str, name: str, values: torch.Tensor) -> None:
        if kind == "buffers":
            self.register_buffer(name, values)
        else:
            self.register_parameter(name, nn.Parameter(values, requires_grad=False))

    @override
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        weight = self.weight.float() * self.scales.float()[:, None]
        return torch.tanh(nn.functional.linear(hidden, weight))


class Toy(nn.Module):
    """Some such layers, and a buffer of their own making that no checkpoint holds."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Quantised(kind) for _ in range(4)])
        self.register_buffer("shift", torch.ones(WIDTH), persistent=False)

    def get_input_embeddings(self) -> None:
        return None

    def get_output_embeddings(self) -> None:
        return None

    @override
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden = layer(hidden + self.shift)
        return hidden


def filled(toy: Toy) -> Toy:
    with torch.no_grad():
        for tensor in toy.state_dict().values():
            tensor.copy_(torch.randint(-9, 9, tensor.shape) / (1 if tensor.dim() > 1 else 64))
    return toy


@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_parameters_and_persistent_buffers_stream_alike(kind: str, tmp_path: Path) -> None:
    expected = filled(Toy(kind))
    save_file(expected.state_dict(), tmp_path / "model.safetensors")
    model: Any = Toy(kind)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    stages = find_stages(find_structure(model, {}, dtypes))
    assert sum(w.nbytes for stage in stages for w in stage.weights) == 4 * (WIDTH**2 + 2 * WIDTH)
    plan = make_plan(stages, CPU, "min", None)
    assert len(plan.streamed("disk")) == 4
    pipeline = stream(model, stages, read_index(tmp_path), plan, CPU, Options())
    hidden = torch.randn(2, WIDTH)
    for _ in range(3):
        assert torch.equal(pipeline.run(model.forward, (hidden,)), expected(hidden))
        held = model.state_dict(keep_vars=True).values()
        assert {type(tensor) for tensor in held} == {Placeholder}
        for name, values in model.state_dict().items():
            assert torch.equal(values, expected.state_dict()[name])
    assert model.shift.tolist() == [1.0] * WIDTH


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mixtral"])
def test_stages_dealt_out_to_two_devices_answer_as_stock(
    checkpoint: Callable[..., Path],
    check_answers: Callable[..., None],
    prompt: torch.Tensor,
    tmp_path: Path,
    architecture: str,
) -> None:
    """Both are the host here, which torch does not tell apart, but a plan does."""
    folder = checkpoint(architecture)
    prepared = prepare(folder, None, CPU, "auto", "eager", False)
    located = prepared.location.locate(tmp_path, delete_original=False)
    stages = prepared.staged.stages
    first, second = (make_plan(stages, device, "min", None) for device in (CPU, SECOND))
    moved = set(first.streamed("disk")[1::2])
    plan = replace(
        first,
        places={n: second.places[n] if n in moved else place for n, place in first.places.items()},
        slot_sizes=first.slot_sizes | second.slot_sizes,
        device_bytes=first.device_bytes | second.device_bytes,
    )
    plan.places["model.layers.0"] = Place("host", SECOND)  # type: ignore[index]
    pipeline = stream(prepared.model, stages, located, plan, CPU, Options())
    assert devices_of(pipeline) == {CPU, SECOND}
    check_answers(folder, prepared, pipeline, [prompt, prompt[:1, :1], prompt])


def devices_of(pipeline: Pipeline) -> set[torch.device]:
    """Those that stages take turns on."""
    return {lane.transfer.device for lane in pipeline._lanes if len(lane.ring)}
