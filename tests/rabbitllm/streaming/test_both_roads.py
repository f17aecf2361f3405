"""Experts of which the CPU computes some for a device, which is simulated: see `simulated`."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from rabbitllm import StreamedModel, auto
from rabbitllm.streaming import both_roads, host
from rabbitllm.streaming.both_roads import BothRoads, Pass
from rabbitllm.streaming.crew import CrewJob
from rabbitllm.streaming.landing import Landing
from rabbitllm.streaming.recent import Recent
from rabbitllm.streaming.roads import Roads
from rabbitllm.streaming.routes import Routes
from rabbitllm.streaming.row_slots import RowSlots
from rabbitllm.streaming.rows import ShelfRows
from rabbitllm.streaming.weights import Stage
from tests.rabbitllm.streaming.simulated import Simulated, simulate

ROADS = Roads(link=1e6, host={1: 9e5, 8: 9e5, 64: 9e5}, threads=1, crossing=0.0)
"""Of a machine so slow that tiny experts are worth sharing out: one in three is the CPU's."""
EXPERTS = 8
LONG = torch.arange(48).view(2, 24) * 3 % 160
SMALL = {"num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_routed_experts": EXPERTS}
KINDS: dict[str, dict[str, Any]] = {
    "mixtral": {"num_experts_per_tok": 3},
    "qwen3_moe": {"num_experts_per_tok": 3, "moe_intermediate_size": 32, "head_dim": 32},
    "gpt_oss": {"num_experts_per_tok": 3, "head_dim": 16},
    "deepseek_v3": {
        "num_experts_per_tok": 3,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "moe_intermediate_size": 32,
        "kv_lora_rank": 16,
        "q_lora_rank": 32,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
}


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(monkeypatch)
    monkeypatch.setattr(auto, "roads_of", lambda *_: ROADS)


@pytest.fixture(scope="module")
def mixture(
    build: Callable[..., PreTrainedModel], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """`mixture(kind)` -> a folder that the tests here share."""
    made: dict[str, Path] = {}

    def folder(kind: str = "qwen3_moe") -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            build(kind, **SMALL | KINDS[kind]).save_pretrained(made[kind])
        return made[kind]

    return folder


@pytest.fixture
def shared(streamed: Callable[..., StreamedModel]) -> Callable[..., StreamedModel]:
    def load(folder: Path, **options: Any) -> StreamedModel:
        least = {"device_memory": "min", "host_memory": 1 << 30, "attn_implementation": "eager"}
        return streamed(folder, **least | {"host_compute": "auto"} | options)

    return load


@pytest.fixture
def crewed(
    mixture: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> tuple[StreamedModel, PreTrainedModel]:
    """A model of which three threads compute experts, and stock's."""
    monkeypatch.setattr(auto, "roads_of", lambda *_: replace(ROADS, threads=3))
    folder = mixture()
    return shared(folder), stock(folder, attn_implementation="eager")


def resize(model: StreamedModel, slots: int) -> None:
    """Gives its shelf so many slots."""
    (shelf,) = model._pipeline._shelves
    memory = torch.zeros(slots, shelf._slots.memory.shape[1], dtype=torch.uint8)
    shelf._slots, shelf._recent = RowSlots(memory), Recent(range(slots))


def close(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    return torch.allclose(mine, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


class Watch:
    """What passes on both roads do.

    Attributes:
        numbers: for each the rows that the device computed with.
        sent: (stage, row) -> how often it was sent to the device.
        poisoned: rows that the device has are no numbers on the CPU.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.numbers: list[Sequence[int]] = []
        self.sent: Counter[tuple[str, int]] = Counter()
        self.poisoned = False
        beside, send = BothRoads.beside, Simulated._send_pinned

        @contextmanager
        def watched(both: BothRoads, given: Any, numbers: Sequence[int]) -> Iterator[Pass]:
            self.numbers.append(numbers)
            rows = both._host
            if self.poisoned:
                monkeypatch.setattr(both, "_host", lambda: _without(rows(), numbers))
            with beside(both, given, numbers) as together:
                monkeypatch.setattr(both, "_host", rows)
                yield together

        def sending(transfer: Simulated, stage: Stage, rows: Sequence[tuple[int, Any]]) -> None:
            self.sent.update((stage.name, number) for number, _ in rows)
            send(transfer, stage, rows)

        monkeypatch.setattr(BothRoads, "beside", watched)
        monkeypatch.setattr(Simulated, "_send_pinned", sending)


def _without(tensors: Sequence[torch.Tensor], numbers: Sequence[int]) -> list[torch.Tensor]:
    copies = [tensor.clone() for tensor in tensors]
    for copied in copies:
        copied[list(numbers)] = torch.nan
    return copies


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("kind", KINDS)
def test_long_passes_give_stocks_answers_by_both_roads_and_short_ones_its_bits(
    mixture: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    watch: Watch,
    kind: str,
    implementation: str,
) -> None:
    folder = mixture(kind)
    options = {"attn_implementation": "eager", "experts_implementation": implementation}
    reference, model = stock(folder, **options), shared(folder, **options)
    layers = len(model.streaming_plan.shared)
    assert layers == (3 if kind == "deepseek_v3" else 4)
    with torch.no_grad():
        for ids in (LONG, LONG[:1], LONG):  # what comes first, and what came ahead
            watch.numbers = []
            mine, right = model(ids).logits, reference(ids).logits
            assert close(mine, right)
            assert not close(mine, reference(ids.flip(-1)).logits)
            assert len(watch.numbers) == layers
        for ids in (LONG[:1, :1], LONG[:, :1]):
            assert torch.equal(model(ids).logits, reference(ids).logits)
        assert len(watch.numbers) == layers


@pytest.mark.parametrize("slots", [EXPERTS, 3 * EXPERTS])
def test_each_road_touches_its_own_rows_and_no_others_come(
    mixture: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    watch: Watch,
    slots: int,
) -> None:
    folder = mixture()
    model, reference = shared(folder), stock(folder, attn_implementation="eager")
    resize(model, slots)
    watch.poisoned = True
    with torch.no_grad():
        for ids in (LONG, LONG[:1], LONG):
            watch.numbers, watch.sent = [], Counter()
            before = model.streaming_stats()
            assert close(model(ids).logits, reference(ids).logits)
            after = model.streaming_stats()
            for layer, numbers in enumerate(watch.numbers):
                sent = {row for name, row in watch.sent if f".{layer}." in name}
                assert sent <= set(numbers) < set(range(EXPERTS))
                assert 1 <= EXPERTS - len(numbers) <= 4
                if slots == EXPERTS:  # with room for more, rows are kept: a third of the others
                    assert len(numbers) in (5, 6)
            assert set(watch.sent.values()) <= {1}
            hosted = sum(EXPERTS - len(numbers) for numbers in watch.numbers)
            row = 3 * 32 * 64 * 4
            assert after["bytes_on_host"] - before["bytes_on_host"] == hosted * row
            assert after["host_seconds"] > before["host_seconds"]
            ahead = after["rows_foreseen"] - before["rows_foreseen"]
            came = sum(count for (name, _), count in watch.sent.items() if ".0." not in name)
            assert came - 2 <= ahead <= came  # what is kept may be given up meanwhile


@pytest.mark.parametrize(("slots", "brought"), [(4, set()), (5, {5})])
def test_where_the_device_has_no_room_for_its_share_the_cpu_takes_more_if_that_is_quick(
    mixture: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    watch: Watch,
    slots: int,
    brought: set[int],
) -> None:
    folder = mixture()
    model, reference = shared(folder), stock(folder, attn_implementation="eager")
    resize(model, slots)
    with torch.no_grad():
        assert close(model(LONG).logits, reference(LONG).logits)
        assert set(map(len, watch.numbers)) == brought


def test_groups_of_tokens_come_by_the_link_alone(
    mixture: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = mixture()
    model, reference = shared(folder), stock(folder, attn_implementation="eager")
    resize(model, 5)
    few = len(LONG.flatten()) * 3 - 1
    on_device = ShelfRows.on_device

    def only_few(rows: ShelfRows, routes: int) -> Sequence[int] | None:
        return on_device(rows, routes) if routes <= few else None

    monkeypatch.setattr(ShelfRows, "on_device", only_few)
    with torch.no_grad():
        assert close(model(LONG).logits, reference(LONG).logits)
    assert not watch.numbers


def test_what_an_interrupt_left_does_not_reach_the_cpu(
    mixture: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    watch: Watch,
) -> None:
    folder = mixture()
    model, reference = shared(folder), stock(folder, attn_implementation="eager")
    experts = model.model.layers[1].mlp.experts
    with torch.no_grad():
        model(LONG)
        watch.numbers = []
        experts.num_experts = 5  # as it is while the device computes
        assert close(model(LONG).logits, reference(LONG).logits)
    assert len(watch.numbers) == model.config.num_hidden_layers
    assert experts.num_experts == EXPERTS


def computing() -> set[threading.Thread]:
    """The threads that compute there."""
    return {thread for thread in threading.enumerate() if thread.name.startswith(host.WORKER)}


class BrokenError(Exception):
    """What an activation raises."""


@pytest.mark.parametrize(
    ("there", "error", "raised"),
    [
        (True, BrokenError, RuntimeError),
        (False, BrokenError, BrokenError),
        (False, KeyboardInterrupt, KeyboardInterrupt),
    ],
)
def test_behind_an_error_nothing_is_computed_any_more_and_the_next_answer_is_right(
    mixture: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    monkeypatch: pytest.MonkeyPatch,
    there: bool,
    error: type[BaseException],
    raised: type[BaseException],
) -> None:
    folder = mixture()
    model, reference = shared(folder), stock(folder, attn_implementation="eager")
    activation = type(model.get_submodule("model.layers.1.mlp.experts").act_fn)
    right, under_way = activation.forward, list[str]()
    begun, failed = threading.Event(), threading.Event()

    def fail(module: torch.nn.Module, given: torch.Tensor) -> torch.Tensor:
        on_host = threading.current_thread() in computing()
        if on_host == there:
            assert there or begun.wait(10)
            failed.set()
            raise error("no")
        if on_host:
            under_way.append("begun")
            begun.set()
            assert failed.wait(10)
            large = torch.ones(2000, 2000)
            large @ large  # it is still computed when the other road fails
            under_way.append("ended")
        output: torch.Tensor = right(module, given)
        return output

    monkeypatch.setattr(activation, "forward", fail)
    says = r"model.layers.0.mlp.experts failed on the CPU, .* BrokenError: no" if there else "no"
    with torch.no_grad(), pytest.raises(raised, match=says):
        model(LONG)
    assert under_way == ([] if there else ["begun", "ended"])
    monkeypatch.setattr(activation, "forward", right)
    with torch.no_grad():
        for ids in (LONG, LONG[:1, :1]):
            assert close(model(ids).logits, reference(ids).logits)
    assert all(
        each.is_meta for each in model.get_submodule("model.layers.0.mlp.experts").parameters()
    )
    before = computing()
    del model
    assert len(before - computing()) == 1


def test_a_crew_that_is_started_in_part_has_ended_behind_it(
    crewed: tuple[StreamedModel, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, reference = crewed
    start, compute = host.HostWorker.start, CrewJob._compute
    started, under_way = [0], list[str]()

    def second_fails(worker: host.HostWorker, work: Callable[[], None]) -> Any:
        started[0] += 1
        if started[0] == 2:
            raise KeyboardInterrupt
        return start(worker, work)

    def slow(job: CrewJob, share: torch.Tensor) -> None:
        under_way.append("begun")
        large = torch.ones(2000, 2000)
        large @ large
        compute(job, share)
        under_way.append("ended")

    monkeypatch.setattr(host.HostWorker, "start", second_fails)
    monkeypatch.setattr(CrewJob, "_compute", slow)
    with torch.no_grad():
        with pytest.raises(KeyboardInterrupt):
            model(LONG)
        assert under_way == ["begun", "ended"]
        assert close(model(LONG).logits, reference(LONG).logits)


def test_what_records_or_is_not_quite_stocks_is_computed_on_the_device(
    mixture: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = mixture()
    model, reference = shared(folder), stock(folder, attn_implementation="eager")
    gradients = []
    for each in (model, reference):
        embedded = each.get_input_embeddings()(LONG).detach().requires_grad_()
        each(inputs_embeds=embedded).logits.sum().backward()
        gradients.append(embedded.grad)
    assert torch.equal(*gradients)
    experts = [each.get_submodule("model.layers.1.mlp.experts") for each in (model, reference)]
    with torch.no_grad(), monkeypatch.context() as patched:
        patched.setattr(torch, "is_autocast_enabled", lambda *_: True)
        assert torch.equal(model(LONG).logits, reference(LONG).logits)
    assert not watch.numbers
    with torch.no_grad():
        hooks = [each.act_fn.register_forward_hook(lambda *_: None) for each in experts]
        assert close(model(LONG).logits, reference(LONG).logits)
        assert len(watch.numbers) == 3
        for hook in hooks:
            hook.remove()
        weight = torch.randn_like(experts[1].down_proj)
        for each in experts:
            each.down_proj = torch.nn.Parameter(weight)
        assert close(model(LONG).logits, reference(LONG).logits)
        assert len(watch.numbers) == 6
        for each in (model, reference):
            each.get_submodule("model.layers.2.mlp.experts").act_fn = torch.nn.PReLU()
        assert close(model(LONG).logits, reference(LONG).logits)
        assert len(watch.numbers) == 8
    for each in (model, reference):
        each.set_experts_implementation("batched_mm")
    with torch.no_grad():
        assert close(model(LONG).logits, reference(LONG).logits)
    assert len(watch.numbers) == 8


def test_a_token_is_sent_to_no_expert_by_a_number_behind_the_last(
    mixture: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, name = mixture(), "model.layers.2.mlp.experts"
    monkeypatch.setattr(ShelfRows, "on_device", lambda *_: [1, 4, EXPERTS - 1])
    mine, right = (each.get_submodule(name) for each in (shared(folder), stock(folder)))
    states, weights = torch.randn(40, 64), torch.rand(40, 2)
    numbers = torch.randint(EXPERTS, (40, 2), generator=torch.Generator().manual_seed(0))
    nobody = torch.rand(40, 2) < 0.3
    with torch.no_grad():
        expected = right(states, numbers, weights.masked_fill(nobody, 0))
        assert close(mine(states, numbers.masked_fill(nobody, EXPERTS), weights), expected)
        assert len(watch.numbers) == 1
        few = torch.zeros_like(numbers)
        for one in (few, few + EXPERTS - 1):  # the CPU's, and the device's
            assert close(mine(states, one, weights), right(states, one, weights))
        assert not mine(states, few + EXPERTS, weights).any()
        with pytest.raises(IndexError, match=f"{name} has no row -1: it has {EXPERTS}"):
            mine(states, few - 1, weights)


def test_half_precision_is_as_close_as_it_is(
    build: Callable[..., PreTrainedModel],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    watch: Watch,
    tmp_path: Path,
) -> None:
    build("qwen3_moe", torch.bfloat16, **SMALL | KINDS["qwen3_moe"]).save_pretrained(tmp_path)
    model, reference = shared(tmp_path), stock(tmp_path, attn_implementation="eager")
    truth = stock(tmp_path, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        right = truth(LONG).logits
        mine, theirs = (each(LONG).logits.float() for each in (model, reference))
    assert watch.numbers
    assert (mine - right).abs().mean() <= 1.2 * (theirs - right).abs().mean()


def test_inputs_and_outputs_cross_in_pieces(
    mixture: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crossed: list[int] = []
    take, bring = Landing._take, Landing.bring
    monkeypatch.setattr(
        Landing, "_take", lambda self, given: (crossed.append(given.nbytes), take(self, given))[1]
    )
    monkeypatch.setattr(
        Landing,
        "bring",
        lambda self, made, device: (crossed.append(made.nbytes), bring(self, made, device))[1],
    )
    monkeypatch.setattr(both_roads, "PAGE", 1024)
    folder = mixture()
    model, reference = shared(folder), stock(folder, attn_implementation="eager")
    with torch.no_grad():
        assert close(model(LONG).logits, reference(LONG).logits)
    assert max(crossed) == 1024
    states = LONG.numel() * 64 * 4
    assert sum(crossed) >= 4 * 2 * states


def test_each_thread_computes_with_experts_of_its_own(
    crewed: tuple[StreamedModel, PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[threading.Thread, set[int]]] = []
    compute = Routes.compute

    def noted(routes: Routes, *given: Any) -> torch.Tensor:
        asked.append((threading.current_thread(), set(routes.numbers.tolist())))
        return compute(routes, *given)

    monkeypatch.setattr(Routes, "compute", noted)
    monkeypatch.setattr(ShelfRows, "on_device", lambda *_: [0, 7])
    model, reference = crewed
    with torch.no_grad():
        assert close(model(LONG).logits, reference(LONG).logits)
    theirs = [(by, numbers) for by, numbers in asked if by.name.startswith(host.WORKER)]
    assert len(theirs) == 4 * 3
    for layer in range(0, len(theirs), 3):
        threads, numbers = zip(*theirs[layer : layer + 3], strict=True)
        assert sorted(chain(*numbers)) == [1, 2, 3, 4, 5, 6]
        assert len(set(threads)) == 3


def test_encoded_experts_come_by_the_link_alone(
    build: Callable[..., PreTrainedModel],
    shared: Callable[..., StreamedModel],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    wide = SMALL | {"hidden_size": 256, "intermediate_size": 384}
    build("mixtral", torch.bfloat16, **wide).save_pretrained(tmp_path / "checkpoint")
    stored = {"compression": "lossless", "layer_shards_saving_path": tmp_path / "stores"}
    plan = shared(tmp_path / "checkpoint", **stored).streaming_plan
    assert not plan.shared
    assert plan.rates is None
    assert "experts of 4 layers come by the link alone: they are stored encoded" in caplog.text
    assert "host_compute does nothing here: no module computes by itself" in caplog.text


def test_what_is_computed_there_goes_with_the_model(
    mixture: Callable[..., Path], shared: Callable[..., StreamedModel]
) -> None:
    model = shared(mixture())
    before = computing()
    with torch.no_grad():
        model(LONG)
    assert len(computing() - before) == 1
    del model
    assert computing() <= before


def test_only_stocks_forward_of_states_numbers_and_weights_is_shared_out(
    mixture: Callable[..., Path], shared: Callable[..., StreamedModel]
) -> None:
    model = shared(mixture())
    experts = model.get_submodule("model.layers.2.mlp.experts")
    both: BothRoads = experts.forward._run.__self__._both
    states, weights = torch.randn(24, 64), torch.rand(24, 3)
    numbers = torch.zeros(24, 3, dtype=torch.long)
    own = MethodType(type(experts).forward, experts)
    with torch.no_grad():
        assert both.on_device(own, (states, numbers, weights))
        assert not both.on_device(lambda *_: None, (states, numbers, weights))
        wide = torch.zeros(24, EXPERTS, dtype=torch.long)
        few = slice(EXPERTS // 3)
        for given in (
            (states, numbers),
            (states, numbers, None),
            (states[None], numbers, weights),
            (states[1:], numbers, weights),
            (states, numbers, weights[:, 1:]),
            (states, wide, wide.float()),  # a column for each expert
            (states[few], numbers[few], weights[few]),
        ):
            assert not both.on_device(own, given)
    assert not both.on_device(own, (states, numbers, weights))  # a graph is recorded
