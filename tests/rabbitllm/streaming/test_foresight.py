from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from rabbitllm.streaming import foresight
from rabbitllm.streaming.foresight import TRIED, Foresight, Trial

CPU = torch.device("cpu")


class Rows:
    """What is asked to come."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def foresee(self, numbers: list[int]) -> None:
        self.asked.append(numbers)


def of_last_block(model: PreTrainedModel, rows: Rows, trial: Trial | None = None) -> Foresight:
    block = model.model.layers[-1].mlp
    return Foresight(block, "experts", 1, rows, trial or Trial(), CPU)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_a_guess_is_what_the_blocks_own_router_says(
    checkpoint: Callable[..., Path], stock: Callable[..., PreTrainedModel], architecture: str
) -> None:
    model, rows = stock(checkpoint(architecture)), Rows()
    block, seen = model.model.layers[-1].mlp, []
    block.experts.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    states = torch.randn(1, 5, model.config.hidden_size)
    ahead = of_last_block(model, rows)
    with torch.no_grad():
        block(states)
        ahead.guess(states[0])
        ahead.begin()
    (numbers,) = rows.asked
    assert set(numbers) == set(seen[0].flatten().tolist())
    assert len(seen) == 1  # the real experts heard nothing of the guess
    often = [int((seen[0] == number).sum()) for number in numbers]
    assert often == sorted(often, reverse=True)


def test_hooks_and_the_modules_own_forward_see_nothing(
    checkpoint: Callable[..., Path], stock: Callable[..., PreTrainedModel]
) -> None:
    model, rows = stock(checkpoint("qwen3_moe")), Rows()
    ahead = of_last_block(model, rows)
    for module in model.model.layers[-1].mlp.modules():
        module.register_forward_pre_hook(lambda *_: pytest.fail("a hook ran"))
    with torch.no_grad():
        ahead.guess(torch.randn(2, model.config.hidden_size))
        ahead.begin()
    assert len(rows.asked) == 1


def test_a_block_that_takes_more_than_states_is_asked_once(
    checkpoint: Callable[..., Path], stock: Callable[..., PreTrainedModel]
) -> None:
    class Other(nn.Module):
        calls = 0

        def __init__(self, experts: nn.Module) -> None:
            super().__init__()
            self.experts = experts

        def forward(self, states: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
            raise NotImplementedError

    experts, rows = stock(checkpoint("mixtral")).model.layers[0].mlp.experts, Rows()
    ahead = Foresight(Other(experts), "experts", 1, rows, Trial(), CPU)  # type: ignore[arg-type]
    with torch.no_grad():
        for _ in range(2):
            ahead.guess(torch.zeros(1, 8))
            ahead.begin()
    assert rows.asked == []


def test_where_a_graph_is_recorded_nothing_is_guessed(
    checkpoint: Callable[..., Path], stock: Callable[..., PreTrainedModel]
) -> None:
    model, rows = stock(checkpoint("mixtral")), Rows()
    ahead = of_last_block(model, rows)
    ahead.guess(torch.randn(2, model.config.hidden_size))
    ahead.begin()
    assert rows.asked == []


@pytest.mark.parametrize("saves", [True, False])
def test_a_trial_settles_for_what_is_quicker(monkeypatch: pytest.MonkeyPatch, saves: bool) -> None:
    now, trial = 0.0, Trial()
    monkeypatch.setattr(foresight.time, "perf_counter", lambda: now)
    chosen = []
    for _ in range(3 * TRIED):
        trial.begin_pass(1)
        chosen.append(trial.on)
        now += 1.0 if trial.on == saves else 2.0
    assert set(chosen[: 2 * TRIED]) == {True, False}
    assert set(chosen[2 * TRIED + 1 :]) == {saves}
    trial.begin_pass(64)  # of other passes nothing is known yet
    assert trial.on
