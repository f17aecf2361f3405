from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from rabbitllm.checkpoint.index import read_index
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.streaming.placeholder import put_placeholders
from rabbitllm.streaming.weights import Owner, Stage, Weight

VALUES = torch.arange(16.0).reshape(4, 4)


@pytest.fixture
def idle(tmp_path: Path) -> nn.Parameter:
    model = nn.Sequential(nn.Linear(4, 4, device="meta"))
    save_file({"before": torch.ones(3), "0.weight": VALUES}, tmp_path / "model.safetensors")
    weight = Weight("0.weight", (Owner(model[0], "weight"),), torch.float32, torch.Size((4, 4)))
    reader = Reader(read_index(tmp_path))
    put_placeholders(Stage("0", (model[0],), (weight,)), torch.device("cpu"), reader)
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
        lambda weight: weight.copy_(torch.ones(4, 4)),
        lambda weight: weight.cpu(),
        lambda weight: weight.double(),
        lambda weight: weight.__setitem__(0, torch.ones(4)),
        lambda weight: torch.stack([weight, weight]),
        lambda weight: torch.allclose(weight, weight),
        lambda weight: torch.cat((torch.ones(4, 4), weight)),
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
    idle.requires_grad = False


def test_detached_it_is_the_values_and_nothing_else_of_their_file(idle):
    values = idle.detach()
    assert torch.equal(values, VALUES)
    assert values.untyped_storage().nbytes() == VALUES.nbytes


@pytest.mark.parametrize(
    "index",
    [2, -1, (1, slice(None)), (3, slice(1, 3)), torch.tensor([3, 1, 3]), torch.ones(4).bool()],
)
def test_rows_of_it_can_be_taken(idle, index):
    assert torch.equal(idle[index], VALUES[index])


def test_rows_that_it_does_not_have_cannot(idle):
    with pytest.raises(IndexError):
        idle[4]


@pytest.mark.parametrize(
    "train",
    [
        lambda weight: weight.requires_grad_(),
        lambda weight: weight.requires_grad_(True),
        lambda weight: setattr(weight, "requires_grad", True),
    ],
)
def test_it_is_not_trained(idle, train):
    with pytest.raises(RuntimeError, match=r"^0\.weight is streamed .* not trained.*adapter"):
        train(idle)


@pytest.mark.parametrize(
    "change", [lambda weight: weight.data, lambda weight: setattr(weight, "data", VALUES)]
)
def test_it_has_no_memory_to_change(idle, change):
    with pytest.raises(RuntimeError, match=r"^0\.weight of a streamed model.*keep_weights"):
        change(idle)
