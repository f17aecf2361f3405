"""What is said of a release's answers; test_mutations.py breaks releases for it."""

from __future__ import annotations

import pytest
import torch
import transformers

from harness.measuring.departure import before, departure, first, place
from harness.measuring.subject import Subject

ONES = torch.ones(1, 3, 2)
STEPS = [("model.layers.0.self_attn.q_proj", ONES, ONES), ("lm_head", ONES, ONES)]


@pytest.mark.parametrize("architecture", ["llama", "mixtral", "gemma3", "deepseek_v3", "internlm"])
def test_of_a_sound_release_nothing_is_said(cell, tmp_path, architecture):
    found = cell(architecture, release=transformers.__version__)
    assert departure(Subject(found, tmp_path / "own")) == ""


def test_the_first_step_that_differs_is_named():
    names = [key.removeprefix("model.") for key, _, _ in STEPS]
    sound = dict.fromkeys(names, (ONES, ONES))
    assert first(STEPS, sound) == ""
    assert "weights or bias of lm_head" in first(STEPS, sound | {"lm_head": (ONES, 2 * ONES)})
    assert "in the last norm" in first(STEPS, sound | {"lm_head": (2 * ONES, ONES)})
    assert first(STEPS, {"lm_head": (ONES, ONES)}) == "in layer 0, which does not run"


def test_the_first_position_that_differs_is_named():
    other = ONES.clone()
    other[0, 2] = torch.nan
    assert place(other, ONES) == ", from position 2 on"


def test_what_lies_before_a_projection_is_named():
    assert before("layers.2.self_attn.o_proj", "2").startswith("in the attention of layer 2")
    assert before("layers.0.self_attn.q_proj", "0").startswith("in the embedding")
