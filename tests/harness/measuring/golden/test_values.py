from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from harness.matrix import load_matrix
from harness.measuring.golden import values
from harness.measuring.golden.manifest import architectures, write_checkpoint
from harness.measuring.golden.values import (
    MARGIN,
    NEW,
    REFERENCE,
    Batch,
    compute,
    first_other,
    greedy,
    read_values,
    written,
)
from harness.measuring.references.published import FORWARDS, Published
from harness.tables import build

ROWS = {row.id: row for row in load_matrix().architectures}


@pytest.mark.parametrize("name", architectures())
def test_committed_values_are_those_of_the_reference(name, tmp_path):
    committed = read_values(name)
    assert committed.by == REFERENCE
    write_checkpoint(name, tmp_path)
    again = compute(name, Published(tmp_path), REFERENCE)
    assert replace(again, logits=(), torch="") == replace(committed, logits=(), torch="")
    due = torch.tensor(committed.logits)
    assert (torch.tensor(again.logits) - due).abs().max() < 1e-5 * due.abs().max()


def test_every_family_has_a_reference():
    assert {ROWS[name].model_type for name in architectures()} <= FORWARDS.keys()


def test_a_file_says_all_that_it_was_made_from(monkeypatch, tmp_path):
    found = read_values("llama2")
    text = written(found)
    assert build(values.Values, json.loads(text)) == found
    assert max(map(len, text.splitlines())) < 1000
    assert text == (values.VALUES / "llama2.json").read_text("utf-8")


def counting(step: int, lead: float = 1.0):
    """A forward whose best token is the last one and `step`, modulo 8, by a lead over the next."""

    def forward(ids: torch.Tensor) -> torch.Tensor:
        best = (ids + step) % 8
        logits = torch.zeros(*ids.shape, 8).scatter_(-1, best[..., None], 1.0)
        return logits.scatter_(-1, ((best + 1) % 8)[..., None], 1.0 - lead)

    return forward


def test_greedy_tokens_each_come_from_the_whole_text():
    assert greedy(counting(3), [1, 2], []) == [(2 + 3 * (n + 1)) % 8 for n in range(NEW)]


@pytest.mark.parametrize(
    ("forward", "ends", "message"),
    [
        (counting(0), [], "few"),
        (counting(1), [5], "ends the text"),
        (counting(1, MARGIN / 2), [], "hardly better"),
    ],
)
def test_tokens_that_would_show_little_are_refused(forward, ends, message):
    with pytest.raises(ValueError, match=message):
        greedy(forward, [1, 2], ends)


def test_another_seed_is_asked_for_by_name(monkeypatch):
    def repeating(ids: torch.Tensor) -> torch.Tensor:
        return torch.arange(64.0).expand(*ids.shape, 64)

    with pytest.raises(ValueError, match=r"phi3: .*few.*; its manifest needs another seed"):
        compute("phi3", repeating, REFERENCE)


def test_the_first_other_token_is_that_of_any_row():
    due = (Batch(((1,),), ((5, 6, 7),)), Batch(((1,), (2,)), ((5, 6, 7), (8, 9, 10))))
    assert first_other(due, due) is None
    other = (due[0], Batch(due[1].prompts, ((5, 6, 0), (8, 0, 10))))
    assert first_other(other, due) == 2
