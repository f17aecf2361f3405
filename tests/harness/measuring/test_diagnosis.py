"""What the diagnosis says; tests/harness/measuring/test_mutations.py breaks an engine for it."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from harness.measuring.checkpoints import checkpoint
from harness.measuring.diagnosis import (
    Call,
    Observed,
    compare_weights,
    diagnose,
    first_departure,
    whose,
)
from harness.measuring.subject import Subject

ORDER = [f"model.layers.{n}" for n in range(4)]


@pytest.mark.parametrize("architecture", ["llama", "internlm2"])
def test_of_a_sound_model_nothing_is_said(cell, tmp_path, architecture):
    found = cell(architecture, release=transformers.__version__)
    assert diagnose(Subject(found, checkpoint(found, tmp_path))) == ""


@pytest.mark.parametrize(
    ("owners", "words"),
    [
        ({0: 1, 1: 2}, ["each of 2 blocks ran with the weights of the one 1 behind it"]),
        ({1: 0, 2: 1}, ["each of 2 blocks ran with the weights of the one 1 before it"]),
        ({1: 2, 2: 1}, ["model.layers.1 and model.layers.2 ran with each other's weights"]),
        ({2: 0}, ["model.layers.2 ran with the weights of model.layers.0"]),
        ({}, []),
    ],
)
def test_whose_weights(owners, words):
    assert whose({ORDER[a]: ORDER[b] for a, b in owners.items()}, ORDER) == words


def linear(weight: torch.Tensor) -> nn.Linear:
    made = nn.Linear(2, 2, bias=False)
    made.weight = nn.Parameter(weight, requires_grad=False)
    return made


def test_weights_of_a_block():
    one, two = torch.ones(2, 2), torch.zeros(2, 2)
    stock: dict[str, nn.Module] = {"a": linear(one), "b": linear(two)}
    assert compare_weights("a", linear(one), stock) == ("", "")
    assert compare_weights("a", linear(two), stock) == ("b", "")
    assert compare_weights("a", linear(one * 2), stock) == (
        "",
        "a.weight holds other values than stock's",
    )
    assert compare_weights("a", linear(one.to("meta")), stock) == ("", "a ran without weight")


def observed(*calls: Call) -> Observed:
    return Observed(list(calls), [torch.zeros(1)])


STATES = torch.zeros(1, 2, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (Call("a", {"0": STATES, "mask": STATES}, STATES), []),
        (Call("a", {"0": STATES, "mask": None}, STATES), ["a was called without mask"]),
        (
            Call("a", {"0": STATES + 1, "mask": STATES}, STATES),
            ["a was called with other 0 than stock's"],
        ),
        (
            Call("a", {"0": STATES, "mask": STATES}, STATES[0]),
            ["a gave shape [2, 3], stock's shape [1, 2, 3]"],
        ),
        (
            Call("a", {"0": STATES, "mask": STATES}, STATES + 1),
            ["a gives another result from the same weights and inputs"],
        ),
    ],
)
def test_the_first_departure(call, words):
    stock = observed(Call("a", {"0": STATES, "mask": STATES}, STATES))
    assert list(first_departure(observed(call), stock)) == words


def test_what_follows_the_blocks():
    stock, ours = observed(), observed()
    ours.logits = [torch.ones(1)]
    assert list(first_departure(ours, stock)) == [
        "the blocks agree with stock's, what follows them does not"
    ]
