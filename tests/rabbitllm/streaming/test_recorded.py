"""Parts of layers that are launched as they were recorded, on a device that is simulated."""

import gc
import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rabbitllm import AutoModel
from rabbitllm.streaming.devices import cuda
from rabbitllm.streaming.devices.recorder import Recorder
from rabbitllm.streaming.recorded import (
    AGAIN,
    ELEMENTS,
    RECORDABLE,
    TOKENS,
    Looked,
    Recorded,
    can_be_recorded,
    find_parts,
)
from rabbitllm.streaming.shelf import RowShelf
from tests.rabbitllm.streaming.devices import twin
from tests.rabbitllm.streaming.simulated import simulate

HIDDEN, ROUTES = 16, 2


class Graph:
    """Runs the work again, and writes what it makes over what it made: as a device does."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._work, self.replayed = work, 0

    def replay(self) -> None:
        made = inspect.getclosurevars(self._work).nonlocals["made"]
        first = made[0]
        self._work()
        first.copy_(made[0])
        made[0] = first
        self.replayed += 1


class FakeRecorder:
    """What records."""

    def __init__(self) -> None:
        self.graphs: list[Graph] = []
        self.settled = 0
        self.fails = self.tried = False
        self.device, self.turn = torch.device("cpu"), threading.Lock()
        self.followed = 0

    @property
    def able(self) -> bool:
        return not (self.fails and self.tried)

    def settle(self) -> None:
        self.settled += 1

    def follow(self) -> None:
        self.followed += 1

    def record(self, work: Callable[[], None]) -> Graph | None:
        self.tried = True
        work()
        if self.fails:
            return None
        work()
        self.graphs.append(Graph(work))
        return self.graphs[-1]


class FakeShelf:
    """A shelf of which the device looks rows up, and the lookup."""

    def __init__(self) -> None:
        self.looks_up = True
        self.begun = self.ended = 0

    def looked_up(self, _: str) -> int | None:
        return ROUTES if self.looks_up else None

    def ready_to_look_up(self, name: str, count: int) -> "FakeShelf | None":
        assert (name, count) == ("experts", ROUTES)
        return self if self.looks_up else None

    @contextmanager
    def under_way(self) -> Iterator[None]:
        self.begun += 1
        yield
        self.ended += 1


class Setting:
    """A mixture's block, which is recorded."""

    def __init__(self, implementation: str) -> None:
        config = AutoConfig.for_model(
            "qwen3_moe",
            hidden_size=HIDDEN,
            moe_intermediate_size=8,
            num_experts=4,
            num_experts_per_tok=ROUTES,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            vocab_size=8,
        )
        torch.manual_seed(0)
        made: Any = AutoModelForCausalLM.from_config(config, experts_implementation=implementation)
        self.block = made.eval().model.layers[0].mlp
        self.own = self.block.forward
        self.calls = 0
        self.block.forward = self._counted
        self.recorder, self.shelf = FakeRecorder(), FakeShelf()
        shelf, recorder = cast(RowShelf, self.shelf), cast(Recorder, self.recorder)
        looked = Looked(self.block.experts, "experts", shelf)
        self.recorded = Recorded(self.block, recorder, looked)

    def _counted(self, hidden_states: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        answer: torch.Tensor = self.own(hidden_states)
        return answer

    @property
    def replayed(self) -> int:
        return sum(graph.replayed for graph in self.recorder.graphs)

    def run(self, count: int = 1, tokens: int = 1) -> list[torch.Tensor]:
        """So many calls, of which each must answer as stock does."""
        answers = []
        with torch.no_grad():
            for _ in range(count):
                states = torch.randn(1, tokens, HIDDEN)
                answers.append(self.block(states))
                assert torch.equal(answers[-1], self.own(states))
        return answers

    def warm_up(self) -> None:
        """Calls until what comes is replayed."""
        self.run(AGAIN + 1)
        assert self.replayed == 1


@pytest.fixture(params=["grouped_mm", "batched_mm"])
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


def test_calls_alike_are_replayed_and_answer_for_themselves(setting: Setting) -> None:
    setting.run(AGAIN)
    assert not setting.recorder.graphs
    answers = setting.run(5)
    kept = [answer.clone() for answer in answers]
    setting.run(5)
    assert [len(setting.recorder.graphs), setting.replayed] == [1, 10]
    assert all(map(torch.equal, answers, kept)), "an answer is nobody else's memory"
    assert setting.shelf.begun == setting.shelf.ended == 11
    assert setting.recorder.followed == setting.replayed


def test_another_number_of_tokens_is_another_call(setting: Setting) -> None:
    setting.warm_up()
    setting.run(3, tokens=2)
    assert setting.replayed == 1
    setting.run(2)
    assert setting.replayed == 3
    setting.run(AGAIN + 2, tokens=2)
    assert [len(setting.recorder.graphs), setting.replayed] == [2, 5]


def test_many_tokens_are_never_recorded(setting: Setting) -> None:
    setting.run(2 * AGAIN, tokens=TOKENS + 1)
    assert not setting.recorder.graphs


def see(setting: Setting) -> Callable[[], None]:
    gate: nn.Module = setting.block.gate
    return gate.register_forward_hook(lambda *_: None).remove


def see_all(_: Setting) -> Callable[[], None]:
    return nn.modules.module.register_module_forward_hook(lambda *_: None).remove


def train(setting: Setting) -> Callable[[], None]:
    setting.block.train()
    return lambda: setattr(setting.block.eval(), "training", False)


def take_other_weights(setting: Setting) -> Callable[[], None]:
    before = setting.block.gate.weight.data
    setting.block.gate.weight.data = torch.randn(4, HIDDEN)
    return lambda: setattr(setting.block.gate.weight, "data", before)


def take_another_setting(setting: Setting) -> Callable[[], None]:
    setting.block.gate.norm_topk_prob = not setting.block.gate.norm_topk_prob
    return lambda: setattr(
        setting.block.gate, "norm_topk_prob", not setting.block.gate.norm_topk_prob
    )


def take_another_activation(setting: Setting) -> Callable[[], None]:
    before = setting.block.experts.act_fn
    setting.block.experts.act_fn = nn.ReLU()
    return lambda: setattr(setting.block.experts, "act_fn", before)


def take_an_adapter(setting: Setting) -> Callable[[], None]:
    class Adapted(nn.Module):
        """Of another library."""

        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return torch.relu(states)

    before = setting.block.experts.act_fn
    setting.block.experts.act_fn = Adapted()
    return lambda: setattr(setting.block.experts, "act_fn", before)


def take_another_forward(setting: Setting) -> Callable[[], None]:
    act: Any = setting.block.experts.act_fn
    own = act.forward
    act.forward = lambda states: own(states)
    return lambda: delattr(act, "forward")


def compute_otherwise(setting: Setting) -> Callable[[], None]:
    config = setting.block.experts.config
    before = config._experts_implementation
    config._experts_implementation = "eager"
    return lambda: setattr(config, "_experts_implementation", before)


def compute_by_another_kernel(setting: Setting) -> Callable[[], None]:
    config = setting.block.experts.config
    before = config._experts_implementation
    (config._experts_implementation,) = RECORDABLE - {before}
    return lambda: setattr(config, "_experts_implementation", before)


def bring_by_the_host(setting: Setting) -> Callable[[], None]:
    setting.shelf.looks_up = False
    return lambda: setattr(setting.shelf, "looks_up", True)


@pytest.mark.parametrize(
    "change",
    [
        see,
        see_all,
        train,
        take_other_weights,
        take_another_setting,
        take_another_activation,
        take_an_adapter,
        take_another_forward,
        compute_otherwise,
        compute_by_another_kernel,
        bring_by_the_host,
    ],
)
def test_what_is_not_as_it_was_recorded_is_run(
    setting: Setting, change: Callable[[Setting], Callable[[], None]]
) -> None:
    setting.warm_up()
    calls, undo = setting.calls, change(setting)
    setting.run(3)
    assert [setting.replayed, setting.calls - calls] == [1, 3]
    undo()
    setting.run(2)
    assert setting.replayed == 3


@pytest.mark.parametrize(
    "change",
    [
        see,
        see_all,
        train,
        take_an_adapter,
        take_another_forward,
        compute_otherwise,
        bring_by_the_host,
    ],
)
def test_what_others_see_or_change_is_not_recorded(
    setting: Setting, change: Callable[[Setting], Callable[[], None]]
) -> None:
    undo = change(setting)
    setting.run(3 * AGAIN)
    undo()
    assert not setting.recorder.graphs


def test_a_graph_of_autograd_is_not_recorded(setting: Setting) -> None:
    setting.warm_up()
    states = torch.randn(1, 1, HIDDEN, requires_grad=True)
    for _ in range(2 * AGAIN):
        setting.block(states).sum().backward()
    assert setting.replayed == 1
    assert states.grad is not None


def test_where_nothing_can_be_recorded_all_is_run(setting: Setting) -> None:
    setting.recorder.fails = True
    setting.run(3 * AGAIN)
    assert not setting.replayed
    assert setting.recorder.settled == 3 * AGAIN
    assert setting.calls == 3 * AGAIN + 1, "it is tried once"


def test_what_is_on_another_device_is_run(setting: Setting) -> None:
    setting.recorder.device = torch.device("cuda", 1)
    setting.run(3 * AGAIN)
    assert not setting.recorder.graphs


def test_what_gives_more_than_tensors_is_run(setting: Setting) -> None:
    own = setting.own
    setting.own = lambda states: {"states": own(states)}
    with torch.no_grad():
        for _ in range(3 * AGAIN):
            assert torch.equal(
                setting.block(states := torch.randn(1, 1, HIDDEN))["states"], own(states)
            )
    assert not setting.replayed


def test_an_input_that_is_no_number_is_no_change(setting: Setting) -> None:
    states = torch.full((1, 1, HIDDEN), float("nan"))
    with torch.no_grad():
        for _ in range(AGAIN + 3):
            setting.block(states)
    assert setting.replayed == 3


def test_what_changes_its_input_is_run(setting: Setting) -> None:
    own = setting.own

    def changes(hidden_states: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = own(hidden_states)
        hidden_states.add_(1)
        return answer

    setting.own = changes
    states = torch.zeros(1, 1, HIDDEN)
    with torch.no_grad():
        for _ in range(3 * AGAIN):
            setting.block(states)
    assert (states == 3 * AGAIN).all()
    assert not setting.replayed


def test_an_interrupt_before_the_rows_are_looked_up_is_told(setting: Setting) -> None:
    setting.warm_up()
    graph = setting.recorder.graphs[0]

    def interrupt() -> None:
        raise KeyboardInterrupt

    replay, graph.replay = graph.replay, interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        setting.run()
    assert setting.shelf.begun == setting.shelf.ended + 1
    graph.replay = replay  # type: ignore[method-assign]
    setting.run(2)
    assert setting.replayed == 3


def test_only_what_takes_hidden_states_alone_can_be_recorded() -> None:
    assert can_be_recorded(nn.Linear(2, 2))
    assert not can_be_recorded(nn.Bilinear(2, 2, 2))


def test_a_streamed_mixture_answers_as_stock(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, recorder = checkpoint("qwen3_moe"), FakeRecorder()
    options: dict[str, Any] = {"max_new_tokens": 3 * AGAIN, "do_sample": False}
    other: Any = stock(folder, experts_implementation="grouped_mm")
    expected = other.generate(prompt[:1], **options)
    simulate(monkeypatch)
    monkeypatch.setattr(cuda, "row_kernels", lambda *_: twin)
    monkeypatch.setattr(cuda.CudaTransfer, "recorder", lambda _: recorder)
    model = AutoModel.from_pretrained(
        folder, device="cpu", device_memory="min", experts_implementation="grouped_mm"
    )
    assert torch.equal(model.generate(prompt[:1], **options), expected)
    layers = model.config.num_hidden_layers
    assert len(recorder.graphs) == layers + 1, "of each layer the experts, and the last norm"
    assert all(graph.replayed > AGAIN for graph in recorder.graphs)
    del model
    recorder.graphs.clear()
    gc.collect()  # it ends while the device is simulated


def test_a_part_without_experts_is_replayed_as_well() -> None:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "llama", hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    part: nn.Module = AutoModelForCausalLM.from_config(config).eval().model.layers[0].mlp
    own, recorder = part.forward, FakeRecorder()
    Recorded(part, cast(Recorder, recorder))
    with torch.no_grad():
        for _ in range(AGAIN + 3):
            states = torch.randn(1, 1, 16)
            assert torch.equal(part(states), own(states))
        part(torch.randn(1, ELEMENTS // 16 + 1, 16))
    assert [graph.replayed for graph in recorder.graphs] == [3]


def test_parts_are_norms_and_mlps_whose_weights_stay() -> None:
    config = AutoConfig.for_model(
        "qwen3_moe",
        hidden_size=16,
        intermediate_size=32,
        moe_intermediate_size=8,
        num_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=2,
        mlp_only_layers=[0],
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        vocab_size=8,
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    first, second = model.model.layers
    apart = {first.input_layernorm, first.mlp.up_proj, *second.modules()}
    found = set(find_parts(model, apart))
    attention = first.self_attn
    expected = {first.post_attention_layernorm, attention.q_norm, attention.k_norm}
    assert found == {*expected, model.model.norm}
    assert first.mlp in set(find_parts(model, set()))
    first.mlp.act_fn = nn.ModuleList([nn.SiLU()])
    assert first.mlp not in set(find_parts(model, set()))


def test_another_thread_meanwhile_runs_it_as_always(setting: Setting) -> None:
    setting.warm_up()
    graph = setting.recorder.graphs[0]
    replay = graph.replay

    def meanwhile() -> None:
        with ThreadPoolExecutor(1) as other:
            other.submit(setting.run).result()
        replay()

    graph.replay = meanwhile  # type: ignore[method-assign]
    setting.run()
    assert setting.replayed == 2
