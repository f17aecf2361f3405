from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import override

from rabbitllm import BudgetError
from rabbitllm.streaming.binding import marked
from rabbitllm.streaming.gather import Gather
from rabbitllm.streaming.weights import Owner, Stage, Weight

MIXTURES = ["mixtral", "qwen3_moe", "deepseek_v3"]


class Table:
    """A weight that is elsewhere, and the row numbers that were asked of it."""

    def __init__(self, rows: torch.Tensor) -> None:
        self.rows = rows
        self.asked: list[list[int]] = []


class Tables:
    """Brings rows of tables, no more than so many at a time, or those that are looked up."""

    whole = False

    def __init__(
        self, tables: dict[str, Table], most: int | None = None, looks_up: bool = False
    ) -> None:
        self.tables = tables
        self.most = most
        self.looks_up = looks_up
        self.running: Sequence[int] = ()

    def bring(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        for table in self.tables.values():
            table.asked.append(list(numbers))
        self.running = numbers
        return [
            marked(nn.Parameter(table.rows[list(numbers)], requires_grad=False))
            for table in self.tables.values()
        ]

    def look_up(self, asked: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]] | None:
        """As many rows as numbers: what is behind the distinct ones has no meaning."""
        if not self.looks_up:
            return None
        numbers, places = torch.unique(asked, return_inverse=True)
        tensors = []
        for table in self.tables.values():
            table.asked.append(numbers.tolist())
            rows = table.rows.new_full((asked.numel(), *table.rows.shape[1:]), torch.nan)
            rows[: len(numbers)] = table.rows[numbers]
            tensors.append(marked(nn.Parameter(rows, requires_grad=False)))
        return places, tensors

    def ran(self, numbers: Sequence[int]) -> None:
        assert numbers == self.running


class Next:
    """What the next module is told; it takes all rows from so many on."""

    def __init__(self, all_from: int, comes: bool) -> None:
        self.all_from, self.comes = all_from, comes
        self.told: list[object] = []

    def guess(self, states: torch.Tensor) -> None:
        self.told.append(("guess", len(states)))

    def begin(self) -> None:
        self.told.append("begin")

    def wants_all(self, asked: int, routes: int) -> bool:
        assert asked <= routes
        return asked >= self.all_from

    def begin_all(self, routes: int, running: bool) -> bool:
        assert routes >= self.all_from
        self.told.append(("all", running))
        return self.comes


def gathered(
    module: nn.Module,
    by: int,
    most: int | None = None,
    looks_up: bool = False,
    ahead: Next | None = None,
) -> dict[str, Table]:
    """Takes the module's weights away, and has it gather their rows."""
    tables = {name: Table(weight.detach()) for name, weight in module.named_parameters()}
    for name, table in tables.items():
        module._parameters[name] = marked(nn.Parameter(table.rows.to("meta"), False))
    weights = [
        Weight(name, (Owner(module, name),), t.rows.dtype, t.rows.shape, by=by, rows=len(t.rows))
        for name, t in tables.items()
    ]
    stage = Stage("asked", (module,), tuple(weights), least_rows=by)
    Gather(module, stage, by, Tables(tables, most, looks_up), ahead)
    return tables


def experts_of(model: PreTrainedModel) -> list[nn.Module]:
    return [module for name, module in model.named_modules() if name.endswith(".experts")]


def check_away(module: nn.Module) -> None:
    assert all(parameter.is_meta for parameter in module.parameters())


def test_each_row_that_is_asked_for_comes_once() -> None:
    embedding = nn.Embedding(50, 8)
    ids = torch.tensor([[7, 3, 7], [0, 49, 3]])
    expected = embedding(ids)
    (table,) = gathered(embedding, 0).values()
    assert torch.equal(embedding(ids), expected)
    assert table.asked == [[0, 3, 7, 49]]
    check_away(embedding)


def test_a_padding_row_is_one_like_others() -> None:
    embedding = nn.Embedding(50, 8, padding_idx=40)
    ids = torch.tensor([[40, 3]], dtype=torch.int32)
    expected = embedding(ids)
    gathered(embedding, 0)
    assert torch.equal(embedding(ids), expected)


class Fragile(nn.Embedding):
    """An embedding whose forward may end in an error."""

    error: BaseException | None = None

    @override
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        return super().forward(ids)


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_behind_an_error_the_next_answer_is_right(error: BaseException) -> None:
    embedding, ids = Fragile(50, 8), torch.tensor([9, 4])
    expected = embedding(ids)
    gathered(embedding, 0)
    embedding.error = error
    with pytest.raises(type(error)):
        embedding(torch.tensor([1, 2, 3]))
    if isinstance(error, Exception):  # behind an interrupt torch runs no hook
        check_away(embedding)
    embedding.error = None
    assert torch.equal(embedding(ids), expected)
    check_away(embedding)


def test_a_row_that_is_not_there_is_refused_and_the_weights_are_away() -> None:
    embedding = nn.Embedding(50, 8)
    gathered(embedding, 0)
    with pytest.raises(IndexError):
        embedding(torch.tensor([1, 50]))
    check_away(embedding)


@pytest.mark.parametrize("looks_up", [False, True], ids=["brought", "looked-up"])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
@pytest.mark.parametrize("architecture", MIXTURES)
def test_experts_give_stocks_bits_from_the_rows_that_tokens_are_sent_to(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    prompt: torch.Tensor,
    architecture: str,
    implementation: str,
    looks_up: bool,
) -> None:
    model = stock(checkpoint(architecture))
    if not hasattr(model, "set_experts_implementation"):
        pytest.skip("this release has one implementation of experts")
    model.set_experts_implementation(implementation)
    inputs = [prompt, prompt[:1, :1]]
    expected = [model(ids).logits for ids in inputs]
    mixtures = {module: module.num_experts for module in experts_of(model)}
    tables = {module: gathered(module, 1, looks_up=looks_up) for module in mixtures}
    for ids, logits in zip(inputs, expected, strict=True):
        assert torch.equal(model(ids).logits, logits)
    assert mixtures
    for module, count in mixtures.items():
        check_away(module)
        assert module.num_experts == count == 4
        for table in tables[module].values():
            assert [len(asked) for asked in table.asked][1:] == [2]  # one token goes to two


@pytest.mark.parametrize("comes", [False, True])
def test_rows_of_the_next_module_come_ahead_guessed_or_all(
    checkpoint: Callable[..., Path], stock: Callable[..., PreTrainedModel], comes: bool
) -> None:
    experts = experts_of(stock(checkpoint("mixtral")))[0]
    ahead = Next(3, comes)
    gathered(experts, 1, ahead=ahead)

    def told(routes: list[list[int]]) -> list[object]:
        ahead.told = []
        index = torch.tensor(routes)
        experts(torch.randn(len(index), 64), index, torch.ones(index.shape))
        return ahead.told

    with torch.no_grad():
        assert told([[0, 1]]) == [("guess", 1), "begin"]
        assert told([[0, 1], [1, 0]]) == ["begin"]  # four may have been asked for
        beside = [("all", True)] if comes else [("all", True), ("all", False)]
        assert told([[0, 1], [1, 2]]) == ["begin", *beside]
    assert told([[0, 1], [1, 2]]) == ["begin"]  # a graph needs the table


def test_all_experts_count_again_behind_an_interrupt(
    checkpoint: Callable[..., Path], stock: Callable[..., PreTrainedModel], prompt: torch.Tensor
) -> None:
    model = stock(checkpoint("mixtral"))
    expected = model(prompt).logits
    experts = experts_of(model)[0]
    tables = gathered(experts, 1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    handle = experts.act_fn.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(prompt[:1, :1])
    handle.remove()
    assert experts.num_experts == 4
    assert torch.equal(model(prompt).logits, expected)
    assert experts.num_experts == 4
    assert len(next(iter(tables.values())).asked) == 2


@pytest.mark.parametrize("most", [2, 3])
@pytest.mark.parametrize("implementation", ["eager", "grouped_mm"])
def test_where_few_rows_fit_tokens_take_turns(
    checkpoint: Callable[..., Path],
    stock: Callable[..., PreTrainedModel],
    prompt: torch.Tensor,
    implementation: str,
    most: int,
) -> None:
    model = stock(checkpoint("mixtral"), experts_implementation=implementation)
    expected = model(prompt).logits
    tables = [gathered(module, 1, most) for module in experts_of(model)]
    torch.testing.assert_close(model(prompt).logits, expected)
    asked = [rows for table in tables for rows in table["down_proj"].asked]
    assert len(asked) > len(tables)
    assert max(map(len, asked)) <= most


def test_a_token_that_is_sent_to_more_rows_than_fit_is_refused(
    checkpoint: Callable[..., Path], stock: Callable[..., PreTrainedModel], prompt: torch.Tensor
) -> None:
    model = stock(checkpoint("mixtral"))
    for module in experts_of(model):
        gathered(module, 1, 1)
    with pytest.raises(BudgetError, match="sent to 2 experts, and the budget keeps room for 1"):
        model(prompt)


def test_hooks_of_users_see_the_call_as_it_was_made() -> None:
    embedding = nn.Embedding(50, 8)
    ids = torch.tensor([[7, 3, 7]])
    expected = embedding(ids)
    gathered(embedding, 0)
    seen: list[object] = []

    def before(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        seen.append((args, kwargs))

    embedding.register_forward_pre_hook(before, with_kwargs=True)
    embedding.register_forward_hook(lambda _, args, output: seen.append(args))
    assert torch.equal(embedding(ids), expected)
    assert torch.equal(embedding(input=ids), expected)
    assert [args for args in seen if args] == [((ids,), {}), (ids,), ((), {"input": ids})]


def test_a_weight_that_the_user_put_there_is_taken_as_it_is() -> None:
    embedding = nn.Embedding(50, 8, padding_idx=3)
    ids = torch.tensor([[7, 3, 7]])
    (table,) = gathered(embedding, 0).values()
    embedding.weight = nn.Parameter(torch.randn(50, 8))
    answer = embedding(ids)
    answer.sum().backward()
    assert torch.equal(answer, nn.functional.embedding(ids, embedding.weight))
    assert embedding.weight.grad is not None
    assert embedding.weight.grad.sum(-1).nonzero().tolist() == [[7]]  # the padding learns nothing
    assert not table.asked


def test_beside_one_that_the_user_put_there_the_others_come_whole() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = (nn.Parameter(torch.randn(5, 4)) for _ in "ab")

        @override
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.left[ids] + self.right[ids]

    module, ids = Sum(), torch.tensor([4, 1, 4])
    tables = gathered(module, 0)
    module.left = nn.Parameter(torch.zeros(5, 4))
    assert torch.equal(module(ids), tables["right"].rows[ids])
    assert tables["right"].asked == [list(range(5))]
    assert module.right.is_meta
