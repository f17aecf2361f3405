"""An interrupt falls where it likes: behind it the next answer is the right one, at every place."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest
import torch

from rabbitllm import AutoModel, auto
from rabbitllm.streaming import (
    ahead,
    binding,
    host,
    landing,
    lane,
    lanes,
    one_by_one,
    page,
    pipeline,
    placement,
    promised,
    recent,
    ring,
    row_slots,
    shelf,
)
from rabbitllm.streaming.devices import cpu, transfer
from rabbitllm.streaming.roads import Roads
from tests.rabbitllm.streaming.simulated import promise, simulate

PLACES = {
    os.path.realpath(module.__file__)
    for module in (
        ahead,
        binding,
        cpu,
        host,
        landing,
        lane,
        lanes,
        one_by_one,
        page,
        pipeline,
        promised,
        recent,
        ring,
        row_slots,
        shelf,
        transfer,
    )
}
SPACING = {True: 16, False: 128}
"""Of how many lines, and of how many instructions, one is interrupted beside the first of each."""


class Tracer:
    """Counts the instructions of `PLACES` that this thread runs, and interrupts one of them.

    Args:
        at: which one, counted from 0; none if it is negative.
        lines_only: count lines, not instructions.
    """

    def __init__(self, at: int = -1, lines_only: bool = False) -> None:
        self.at = at
        self.count = 0
        self.seen: list[tuple[str, int]] = []
        self._event = "line" if lines_only else "opcode"

    @contextmanager
    def tracing(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if os.path.realpath(frame.f_code.co_filename) not in PLACES:
            return None
        frame.f_trace_opcodes = self._event == "opcode"
        return self._step

    def _step(self, frame: FrameType, event: str, _: object) -> Callable[..., Any]:
        if event == self._event:
            self.count += 1
            self.seen.append((frame.f_code.co_name, frame.f_lineno))
            if self.count == self.at + 1:
                raise KeyboardInterrupt
        return self._step


Run = Callable[[], torch.Tensor]


def interrupted(run: Run, at: int, lines_only: bool = True) -> bool:
    """Whether `run` was cut off at its instruction number `at`."""
    try:
        with Tracer(at, lines_only).tracing():
            run()
    except KeyboardInterrupt:
        return True
    return False


def places(run: Run, lines_only: bool = True) -> list[tuple[str, int]]:
    """Function and line of every instruction that `run` can be interrupted at."""
    tracer = Tracer(lines_only=lines_only)
    with tracer.tracing():
        run()
    return tracer.seen


def wrong_behind(run: Run, chosen: Iterable[int], lines_only: bool = True) -> list[int]:
    """Which of the chosen instructions leave a wrong answer behind when they are interrupted.

    How many there are depends on what other threads have done by then, so the last may be none.
    """
    expected = run()
    return [
        at for at in chosen if interrupted(run, at, lines_only) and not torch.equal(run(), expected)
    ]


@pytest.fixture
def model(checkpoint: Callable[..., Any]) -> Any:
    return AutoModel.from_pretrained(checkpoint("llama"), device="cpu", host_memory="min")


def forward_of(model: Any, prompt: torch.Tensor) -> Run:
    return torch.inference_mode()(lambda: model(prompt, use_cache=False).logits)


@pytest.mark.parametrize("lines_only", [True, False], ids=["lines", "instructions"])
def test_the_answer_behind_an_interrupt_is_right(
    model: Any, prompt: torch.Tensor, lines_only: bool
) -> None:
    run = forward_of(model, prompt)
    seen = places(run, lines_only)
    assert len({name for name, _ in seen}) > 12, "the tracer sees what it is to interrupt"
    first = {place: at for at, place in reversed(list(enumerate(seen)))}
    chosen = {*first.values(), *range(0, len(seen), SPACING[lines_only])}
    assert wrong_behind(run, sorted(chosen), lines_only) == []


def test_what_an_interrupt_left_is_put_away_by_the_next_forward(
    model: Any, prompt: torch.Tensor
) -> None:
    run = forward_of(model, prompt)
    at = max(at for at, (name, _) in enumerate(places(run)) if name == "bind")
    assert interrupted(run, at)
    run()
    assert all(p.is_meta for p in model.model.layers.parameters())


def test_a_block_called_by_itself_works_behind_an_interrupt(model: Any) -> None:
    head = model.lm_head
    hidden = torch.randn(1, 3, head.in_features)
    run = torch.inference_mode()(lambda: head(hidden))
    assert wrong_behind(run, range(len(places(run)))) == []


@pytest.mark.parametrize(
    ("tokens", "known"), [(1, False), (1, True), (9, False)], ids=["short", "ahead", "long"]
)
def test_the_answer_behind_an_interrupt_is_right_where_the_cpu_computes_for_a_device(
    checkpoint: Callable[..., Any],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    tokens: int,
    known: bool,
) -> None:
    simulate(monkeypatch)
    if known:
        promise(monkeypatch)
    roads = Roads(link=1e6, host={1: 1e6}, threads=1, crossing=0.0)
    monkeypatch.setattr(auto, "roads_of", lambda *_: roads)
    budgets = {"device_memory": "min", "host_memory": 1 << 30}
    model = AutoModel.from_pretrained(
        checkpoint("llama"), device="cpu", host_compute="auto", **budgets
    )
    first, other = (forward_of(model, prompt[:1, :count]) for count in (tokens, 10 - tokens))
    seen = places(first)
    assert ("_compute" in {name for name, _ in seen}) is (tokens == 1)
    if known:  # the form of what is computed, from here on
        seen = places(first)
        assert {"_go_on", "fetch"} <= {name for name, _ in seen}
    expected = [first(), other()]
    chosen = {place: at for at, place in reversed(list(enumerate(seen)))}
    for at in sorted({*chosen.values(), *range(0, len(seen), 8 * SPACING[True])}):
        if interrupted(first, at):
            answers = [first(), other()]
            assert all(map(torch.equal, answers, expected)), seen[at]


@pytest.mark.parametrize("rows", [1, 6], ids=["passing", "kept"])
def test_the_answer_behind_an_interrupt_is_right_where_experts_come_one_by_one(
    listed: Callable[..., Any],
    prompt: torch.Tensor,
    monkeypatch: pytest.MonkeyPatch,
    rows: int,
) -> None:
    monkeypatch.setattr(placement, "working_bytes", lambda *_: 0)
    options = {"device": "cpu", "trust_remote_code": True}
    folder = listed()
    least = AutoModel.from_pretrained(folder, host_memory="min", **options)
    row = least.streaming_plan.shelves[torch.device("cpu")].nbytes
    others = (weight for name, weight in least.named_parameters() if ".experts." not in name)
    budget = sum(weight.nbytes for weight in others) + (rows + 1) * row
    model = AutoModel.from_pretrained(folder, host_memory=budget, **options)
    first, other = (forward_of(model, prompt[:1, place : place + 1]) for place in (0, 4))
    expected = [first(), other()]
    seen = places(first)
    assert {"lay_out_one", "make_room"} <= {name for name, _ in seen}
    other()  # so that what is kept is always the same
    chosen = {place: at for at, place in reversed(list(enumerate(seen)))}
    bringing = (at for at, (name, _) in enumerate(seen) if name == "lay_out_one")
    for at in sorted({*chosen.values(), *bringing}):
        if interrupted(first, at):
            answers = [first(), other()]
            assert all(map(torch.equal, answers, expected)), seen[at]
