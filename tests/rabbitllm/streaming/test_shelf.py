from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from typing_extensions import override

from rabbitllm.errors import BudgetError
from rabbitllm.streaming.meter import Meter
from rabbitllm.streaming.rows import ShelfRows
from rabbitllm.streaming.shelf import RowShelf
from rabbitllm.streaming.weights import Owner, Stage, Weight, lay_out

EXPERTS = 6
SHAPES = {"up": (EXPERTS, 4, 8), "down": (EXPERTS, 8, 2)}


def stage(name: str) -> Stage:
    module = nn.Module()
    weights = [
        Weight(
            f"{name}.{key}", (Owner(module, key),), torch.float32, torch.Size(shape), by=1, rows=6
        )
        for key, shape in SHAPES.items()
    ]
    return Stage(name, (module,), lay_out(weights), least_rows=EXPERTS)


class Source:
    """Brings rows; those that are foreseen arrive as far as it is told."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.meter = Meter()
        self.truth = {w.name: torch.randn(w.shape) for each in stages for w in each.weights}
        self.brought: list[int] = []
        self.arriving: set[int] | None = None

    def fill(self, row: Stage, number: int, buffer: torch.Tensor) -> None:
        buffer.fill_(0xFF)
        for weight in row.weights:
            data = self.truth[weight.name][number].reshape(-1).view(torch.uint8)
            buffer[weight.offset : weight.offset + len(data)] = data

    def bring_rows(self, row: Stage, rows: Sequence[tuple[int, torch.Tensor]]) -> None:
        self.brought = [number for number, _ in rows]
        for number, buffer in rows:
            self.fill(row, number, buffer)

    def foresee_rows(self, row: Stage, rows: Sequence[tuple[int, torch.Tensor]]) -> set[int]:
        arrived = {number for number, _ in rows if self.arriving is None or number in self.arriving}
        for number, buffer in rows:
            if number in arrived:
                self.fill(row, number, buffer)
        return arrived

    def end_foresight(self) -> None:
        """All has arrived that will."""


class Toy:
    """Stages that ask a shelf for rows, in turns."""

    def __init__(self, slots: int) -> None:
        stages = [stage("a"), stage("b")]
        self.source: Any = Source(stages)
        memory = torch.zeros(slots, stages[0].row_nbytes, dtype=torch.uint8)
        self.shelf = RowShelf(self.source, memory, stages)

    def ask(self, name: str, numbers: list[int]) -> list[int]:
        """Checks the values; returns the rows that had to come."""
        with torch.no_grad():
            tensors = self.shelf.lay_out(name, numbers)
        for key, tensor in zip(SHAPES, tensors, strict=True):
            assert torch.equal(tensor, self.source.truth[f"{name}.{key}"][numbers])
        self.shelf.keep(name, numbers)
        return list(self.source.brought)


def test_rows_come_once_while_there_is_room() -> None:
    toy = Toy(12)
    assert toy.ask("a", [1, 4]) == [1, 4]
    assert toy.ask("b", [1, 4]) == [1, 4]
    assert toy.ask("a", [1, 3]) == [3]
    assert toy.ask("b", [0, 4]) == [0]
    assert toy.ask("a", [1, 4]) == []
    stats = toy.source.meter.stats
    assert (stats.rows_asked, stats.rows_brought, stats.rows_foreseen) == (10, 6, 0)


def test_a_larger_table_takes_the_place_of_what_was_kept() -> None:
    toy = Toy(6)
    toy.ask("a", [2, 5])
    assert toy.ask("a", list(range(6))) == [0, 1, 2, 3, 4, 5]
    toy.ask("b", [0, 1])
    toy.ask("a", [2, 5])
    toy.ask("a", [2, 5])
    assert toy.ask("a", [2, 5]) == []


def test_what_was_foreseen_is_there_and_what_was_not_comes() -> None:
    toy = Toy(12)
    toy.ask("a", [0, 1])
    toy.shelf.foresee("b", [3, 5])
    assert toy.ask("b", [2, 3]) == [2]
    toy.shelf.foresee("b", [4, 5])
    toy.ask("a", [0, 1])  # another stage's turn: nothing of it holds any more
    assert toy.ask("b", [4, 5]) == [4, 5]
    stats = toy.source.meter.stats
    assert (stats.rows_foreseen, stats.rows_guessed) == (1, 4)


@pytest.mark.parametrize("arriving", [None, {0, 1, 4}, set()])
@pytest.mark.parametrize("asked", [list(range(6)), [0, 2, 3, 5], [5]])
def test_all_that_came_ahead_are_the_table_as_far_as_they_came(
    arriving: set[int] | None, asked: list[int]
) -> None:
    toy = Toy(7)
    toy.ask("a", [1])
    toy.source.arriving = arriving
    toy.shelf.foresee_table("b", range(EXPERTS))
    assert toy.shelf.comes_whole("b")
    assert not toy.shelf.comes_whole("a")
    came = set(range(6)) if arriving is None else arriving
    assert set(toy.ask("b", asked)) <= set(asked)
    assert len(toy.source.brought) >= len(set(asked) - came)
    assert not toy.shelf.comes_whole("b")


def test_all_rows_of_the_next_stage_come_while_those_of_this_one_are_computed_with() -> None:
    toy = Toy(2 * EXPERTS + 2)
    toy.ask("a", [1])
    whole = list(range(EXPERTS))
    with torch.no_grad():
        tensors = toy.shelf.lay_out("a", whole)
    held = [tensor.clone() for tensor in tensors]
    assert toy.shelf.foresee_table("b", range(EXPERTS), running=True)
    assert all(map(torch.equal, tensors, held))  # nothing came over them
    toy.shelf.keep("a", whole)
    assert toy.ask("b", whole) == []
    assert toy.shelf.foresee_table("a", range(EXPERTS), running=True)
    toy.ask("a", whole)
    assert not Toy(EXPERTS + 1).shelf.foresee_table("b", range(EXPERTS), running=True)


def test_what_comes_beside_a_running_table_comes_nowhere_into_it() -> None:
    stages = [stage("a"), stage("b")]
    source: Any = Source(stages)
    shelf = RowShelf(source, torch.zeros(20, stages[0].row_nbytes, dtype=torch.uint8), stages)
    with torch.no_grad():
        for _ in range(3):
            shelf.lay_out("a", [0, 1])  # layers of fewer experts
            shelf.foresee_table("b", range(2), running=True)
            few = shelf.lay_out("b", [0, 1])
            held = [tensor.clone() for tensor in few]
            shelf.foresee_table("a", range(EXPERTS), running=True)
            assert all(map(torch.equal, few, held))
            shelf.lay_out("a", range(EXPERTS))


def test_a_graph_finds_its_rows_behind_a_pass_without_one() -> None:
    toy, whole = Toy(2 * EXPERTS + 2), list(range(EXPERTS))
    toy.shelf.watched = True
    up, _ = toy.shelf.lay_out("b", whole)
    before, saved = up.clone(), toy.shelf.save(up)
    assert saved is not None
    toy.ask("a", whole)
    toy.shelf.foresee_table("b", range(EXPERTS), running=True)
    toy.ask("b", whole)  # in the other table
    with torch.no_grad():
        assert torch.equal(toy.shelf.copy(saved), before)


def test_more_than_there_is_room_for_is_refused_by_name() -> None:
    rows = ShelfRows.of(Toy(3).shelf, stage("a"))
    with pytest.raises(BudgetError, match=r"^a needs 6 experts .* room for 3"):
        rows.bring(range(EXPERTS))


def test_no_more_is_foreseen_than_there_is_room_for() -> None:
    toy = Toy(3)
    toy.ask("a", [0, 1])
    toy.shelf.foresee("b", [2, 3, 4])
    assert toy.source.meter.stats.rows_guessed == 1
    toy.shelf.foresee_table("b", range(EXPERTS))
    assert toy.source.meter.stats.rows_guessed == 1


def test_a_graph_outside_a_watched_forward_has_rows_of_its_own() -> None:
    toy = Toy(6)
    up, _ = toy.shelf.lay_out("a", [1, 2])
    before = up.clone()
    toy.ask("b", [0, 1])
    assert torch.equal(up, before)
    toy.shelf.watched = True
    up, _ = toy.shelf.lay_out("a", [1, 2])
    saved = toy.shelf.save(up[1])
    assert saved is not None
    assert toy.shelf.save(torch.zeros(2)) is None
    toy.ask("b", [0, 3])
    assert torch.equal(toy.shelf.copy(saved), before[1])


def listed(name: str) -> Stage:
    """Rows that are modules of their own."""
    modules = tuple(nn.Module() for _ in range(EXPERTS))
    weights = [
        Weight(f"{name}.{n}.{key}", (Owner(module, key),), torch.float32, torch.Size(shape[1:]))
        for n, module in enumerate(modules)
        for key, shape in SHAPES.items()
    ]
    rows = [replace(w, rows=EXPERTS, row=place // 2) for place, w in enumerate(weights)]
    return Stage(name, modules, lay_out(rows), least_rows=1)


class Single(Source):
    """Brings such rows, which may fail."""

    error: BaseException | None = None

    @override
    def bring_rows(self, row: Stage, rows: Sequence[tuple[int, torch.Tensor]]) -> None:
        if self.error:
            raise self.error
        super().bring_rows(row, rows)

    @override
    def fill(self, row: Stage, number: int, buffer: torch.Tensor) -> None:
        buffer.fill_(0xFF)
        for weight, key in zip(row.weights, SHAPES, strict=True):
            data = self.truth[f"{row.name}.{number}.{key}"].reshape(-1).view(torch.uint8)
            buffer[weight.offset : weight.offset + len(data)] = data


class OneByOne:
    """Two lists of rows that ask a shelf, in turns."""

    def __init__(self, slots: int) -> None:
        stages = [listed("a"), listed("b")]
        self.source: Any = Single(stages)
        memory = torch.zeros(slots, stages[0].row_nbytes, dtype=torch.uint8)
        self.shelf = RowShelf(self.source, memory, stages)

    def ask(self, name: str, numbers: Sequence[int]) -> list[int]:
        """Checks the values; returns the rows that had to come."""
        came, using = [], set[int]()
        with torch.no_grad():
            for number in numbers:
                self.source.brought = []
                using.add(number)
                tensors = self.shelf.lay_out_one(name, number, using)
                for key, tensor in zip(SHAPES, tensors, strict=True):
                    assert torch.equal(tensor, self.source.truth[f"{name}.{number}.{key}"])
                self.shelf.keep(name, using)
                came += self.source.brought
        return came


def test_rows_that_come_alone_stay_where_they_are() -> None:
    toy = OneByOne(5)
    assert toy.ask("a", [4, 1]) == [4, 1]
    assert toy.ask("b", [1, 4]) == [1, 4]
    assert toy.ask("a", [1, 3]) == [3]  # in the place of 4
    assert toy.ask("b", [1, 4]) == []
    assert toy.ask("a", [1, 3]) == []
    assert toy.source.meter.stats.rows_asked == 10


def test_a_long_list_passes_by_what_was_asked_with_it() -> None:
    toy = OneByOne(4)
    assert toy.ask("a", range(EXPERTS)) == list(range(EXPERTS))
    assert toy.ask("a", range(EXPERTS)) == [3, 4, 5]
    assert OneByOne(1).ask("a", [2, 3]) == [2, 3]


def test_a_row_that_did_not_come_keeps_no_slot() -> None:
    toy = OneByOne(3)
    toy.source.error = KeyboardInterrupt()
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            toy.ask("a", [1])
    toy.source.error = None
    assert toy.ask("a", [1, 2]) == [1, 2]
    assert toy.ask("a", [1, 2]) == []


def test_an_interrupt_of_keeping_leaves_no_slot_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = Toy(8)
    toy.ask("a", [0])
    move, free = toy.shelf._slots.move, len(toy.shelf._recent._free)

    def interrupt(moved: Sequence[tuple[int, int]]) -> None:
        if moved:
            raise KeyboardInterrupt

    monkeypatch.setattr(toy.shelf._slots, "move", interrupt)
    for number in range(1, 6):
        with pytest.raises(KeyboardInterrupt):
            toy.ask("a", [number])
    monkeypatch.setattr(toy.shelf._slots, "move", move)
    assert free > 2
    for number in range(1, 1 + free):
        assert toy.ask("a", [number]) == [number]
    for number in range(1 + free):
        assert toy.ask("a", [number]) == []


def test_rows_that_come_alone_share_a_shelf_with_tables() -> None:
    stages = [stage("a"), listed("b")]
    tables, single = Source(stages[:1]), Single(stages[1:])
    source: Any = single
    memory = torch.zeros(12, stages[0].row_nbytes, dtype=torch.uint8)
    shelf = RowShelf(source, memory, stages)
    for _ in range(3):
        for numbers in ([0, 1], [2, 4]):
            source.fill = tables.fill
            with torch.no_grad():
                held = shelf.lay_out("a", numbers)
                for key, tensor in zip(SHAPES, held, strict=True):
                    assert torch.equal(tensor, tables.truth[f"a.{key}"][numbers])
                shelf.keep("a", numbers)
                shelf.foresee("a", [5])
                del source.fill
                for number in numbers:
                    up, _ = shelf.lay_out_one("b", number, numbers)
                    assert torch.equal(up, single.truth[f"b.{number}.up"])
                    shelf.keep("b", numbers)
                up, _ = shelf.lay_out_one("b", 0, numbers)
                assert torch.equal(up, single.truth["b.0.up"])


def test_some_rows_come_ahead_as_the_next_table() -> None:
    toy, some = Toy(2 * EXPERTS + 2), [0, 2, 3, 5]
    toy.ask("a", [1])
    assert toy.shelf.absent("a") == [0, 2, 3, 4, 5]
    for name in ("b", "a", "b"):
        assert toy.shelf.foresee_table(name, some, running=True)
        assert toy.shelf.coming(name) == some
        assert not toy.shelf.comes_whole(name)
        assert toy.ask(name, some) == []
        assert not toy.shelf.coming(name)


@pytest.mark.parametrize("running", [True, False])
@pytest.mark.parametrize("asked", [list(range(EXPERTS)), [2, 4, 5], [0, 1, 2, 3, 5]])
def test_others_may_be_asked_for_than_were_to_be_the_table(asked: list[int], running: bool) -> None:
    toy, some = Toy(8), [0, 2, 3, 5]
    toy.ask("a", some)
    assert toy.shelf.foresee_table("b", some, running)
    toy.ask("b", asked)
