from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from rabbitllm.streaming.routed import counts_of, find_routed, routed_of


class Experts(nn.Module):
    """Experts of the form that transformers' have."""

    def __init__(self, rows: int = 8, **counts: int) -> None:
        super().__init__()
        vars(self).update(counts or {"num_experts": rows})
        self.gate_up_proj = nn.Parameter(torch.zeros(rows, 6, 4))
        self.down_proj = nn.Parameter(torch.zeros(rows, 4, 3))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        raise NotImplementedError


class Zero(Experts):
    """Of which the last ones only hand on what they are given, as longcat_flash's."""

    def __init__(self) -> None:
        super().__init__(8, total_experts=8, num_routed_experts=6)
        self.down_proj = nn.Parameter(torch.zeros(6, 4, 3))


class Common(nn.Module):
    """Of which each is some rows of a common matrix, in a child, as dbrx's."""

    def __init__(self) -> None:
        super().__init__()
        self.num_experts = 4
        self.mlp = nn.Module()
        self.mlp.w1 = nn.Parameter(torch.zeros(4 * 6, 5))

    def forward(
        self, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
    ) -> torch.Tensor:
        raise NotImplementedError


def test_experts_are_found_by_their_form() -> None:
    routed = routed_of(Experts())
    assert routed is not None
    assert routed == (1, {"gate_up_proj": 8, "down_proj": 8})
    assert routed_of(Zero()) == (1, {"gate_up_proj": 8, "down_proj": 6})
    assert routed_of(Common()) == (1, {"mlp.w1": 4})


def test_counts_are_attributes_that_count_experts() -> None:
    module = Experts(8, num_experts=8, num_experts_per_tok=2, expert_dim=8, n_routed_experts=8)
    assert counts_of(module) == {"num_experts": 8, "n_routed_experts": 8}


def test_what_has_another_form_is_not_asked_for_rows() -> None:
    assert routed_of(Experts(8, num_experts=5)) is None  # no weight has so many rows
    assert routed_of(nn.Linear(4, 4)) is None
    listed = Experts()
    listed.each = nn.ModuleList([nn.Linear(2, 2)])
    assert routed_of(listed) is None
    buffered = Experts()
    buffered.register_buffer("scale", torch.ones(8))
    assert routed_of(buffered) is None


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "deepseek_v3"])
def test_every_mixture_of_a_model_is_found(
    checkpoint: Callable[..., Path], stock: Callable[..., PreTrainedModel], architecture: str
) -> None:
    model = stock(checkpoint(architecture))
    named = {name for name, _ in model.named_modules() if name.endswith(".experts")}
    assert find_routed(model).keys() == named
    assert named
