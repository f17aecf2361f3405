"""Rows of one cache among those of another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig

from rabbitllm.batching import cache as module
from rabbitllm.batching.cache import RowsCache

WINDOW = 8
CONFIG = Gemma3TextConfig(
    num_hidden_layers=2,
    sliding_window=WINDOW,
    layer_types=["sliding_attention", "full_attention"],
    hidden_size=8,
)


def filled(rows: int, columns: int, first: int) -> RowsCache:
    """A cache in which row r's column c, counted from the right, is first + 100 r + c."""
    held = RowsCache(CONFIG)
    numbers = first + 100 * torch.arange(rows)[:, None] + torch.arange(columns).flip(0)
    states = numbers.float()[:, None, :, None]
    for layer in range(2):
        held.cache.update(states, -states, layer)
    held.columns = columns
    return held


@pytest.fixture(autouse=True)
def _little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLACK", 4)


@pytest.mark.parametrize("places", [[0, 1, 2], [2, 0], [1, 0, 0, 0]])
@pytest.mark.parametrize(
    ("before", "own", "after"), [(5, 3, 5), (3, 5, 5), (9, 20, 20), (20, 9, 9)]
)
def test_rows_lie_at_the_right_end_wherever_they_come_from(
    before: int, own: int, after: int, places: list[int]
) -> None:
    held, other = filled(3, before, 0), filled(3, own, 1000)
    at = [len(places) - 1, None, 0]
    held.lay_out(places, after, other, at)
    assert held.columns == after
    layers: Any = held.cache.layers
    for layer in layers:
        slides = layer.is_sliding
        columns = min(after, WINDOW + 4 - 1) if slides else after
        assert layer.get_seq_length() == after
        assert layer.keys.shape == (len(places), 1, columns, 1)
        for row, place in enumerate(places):
            mine = row not in at
            first = 100 * place if mine else 1000 + 100 * at.index(row)
            tokens = min(columns, before if mine else own)
            expected = first + torch.arange(tokens).flip(0).float()
            assert torch.equal(layer.keys[row, 0, columns - tokens :, 0], expected)
            assert torch.equal(layer.values, -layer.keys)
    kept: Any = other.cache.layers
    assert not any(layer.keys.numel() for layer in kept)
