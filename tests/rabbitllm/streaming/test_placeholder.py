from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from rabbitllm.streaming.placeholder import put_placeholders
from rabbitllm.streaming.weights import Owner, Stage, Weight


@pytest.fixture
def idle() -> nn.Parameter:
    model = nn.Sequential(nn.Linear(4, 4, device="meta"))
    weight = Weight("0.weight", (Owner(model[0], "weight"),), torch.float32, torch.Size((4, 4)))
    put_placeholders(Stage("0", (model[0],), (weight,)), torch.device("cpu"))
    return model[0].weight


@pytest.mark.parametrize(
    "compute",
    [
        lambda weight: functional.linear(torch.ones(2, 4), weight),
        lambda weight: functional.embedding(torch.tensor([1]), weight),
        lambda weight: torch.ones(4, 4) * weight,
        lambda weight: weight.T,
        lambda weight: weight + 1,
        lambda weight: weight.div_(2),
    ],
)
def test_nothing_is_computed_with_an_idle_weight(idle, compute):
    with pytest.raises(RuntimeError, match=r"^0\.weight is used while it is not in memory"):
        compute(idle)


def test_an_idle_weight_can_be_asked_about_and_frozen(idle):
    assert idle.shape == (4, 4)
    assert idle.numel() == 16
    assert idle.is_floating_point()
    assert idle.is_meta
    assert "size=(4, 4)" in repr(idle)
    assert not idle.requires_grad_(False).requires_grad
    assert idle.detach().is_meta


@pytest.mark.parametrize(
    "index", [2, -1, (1, slice(None)), (3, slice(1, 3)), torch.tensor([3, 1, 3])]
)
def test_rows_are_lent_where_they_can_be_brought(idle, index):
    values, asked = torch.randn(4, 4), []

    def bring(numbers):
        asked.extend(numbers.tolist())
        return values[numbers]

    with pytest.raises(RuntimeError, match="not in memory"):
        idle[index]
    idle.rows = bring
    assert torch.equal(idle[index], values[index])
    assert len(asked) == len(set(asked)) < 4


@pytest.mark.parametrize("index", [slice(None), ..., None, True, torch.ones(4, dtype=torch.bool)])
def test_the_whole_weight_is_not_lent(idle, index):
    idle.rows = torch.ones
    with pytest.raises(RuntimeError, match="not in memory"):
        idle[index]
