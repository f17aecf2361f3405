from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from rabbitllm.checkpoint import rehearsal
from rabbitllm.checkpoint.rehearsal import PARTS, SPARE, rehearse
from rabbitllm.checkpoint.tensors import Extent, TensorEntry

ENTRY = TensorEntry((Extent(Path("file"), 0, 4096),), torch.float32, (1024,))
ENTRIES = {"a": ENTRY, "b": ENTRY}


class Table(nn.Module):
    """One weight of 4 MB, and a buffer that is made by way of two others of its size."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1024, 1024))
        table = torch.arange(size, dtype=torch.float32) * 2 + 1
        self.register_buffer("table", table.view(1, -1).expand(1000, -1))


def test_everything_is_on_the_meta_device() -> None:
    model = rehearse(lambda: Table(10), ENTRIES)
    assert {t.device.type for t in [*model.parameters(), *model.buffers()]} == {"meta"}
    assert torch.empty(0).device.type == "cpu"


@pytest.mark.parametrize("over", [0, 1])
def test_more_parameters_than_the_tensors_can_fill_end_the_building(over: int) -> None:
    most, made = PARTS * len(ENTRIES) + SPARE, 0

    def build() -> nn.Module:
        nonlocal made
        layers = nn.ModuleList()
        for made in range(1, 10 * most if over else most + 1):  # noqa: B007
            layers.append(nn.Linear(1, 1, bias=False))
        return layers

    if over:
        with pytest.raises(OverflowError, match=f"more than {most:,} parameters.* only 2 tensors"):
            rehearse(build, ENTRIES)
        assert made == most + 1
    rehearse(lambda: nn.Linear(1, 1), ENTRIES)  # the count starts anew


@pytest.mark.parametrize("beside", [0, 4])
def test_tables_count_with_what_making_them_takes_and_weights_do_not(
    monkeypatch: pytest.MonkeyPatch, beside: int
) -> None:
    size = 1000
    monkeypatch.setattr(rehearsal, "TABLES", 3 * size * 4 - beside)
    entries = {"a": TensorEntry((Extent(Path("file"), 0, 8),), torch.float32, (2,))}
    if beside:
        with pytest.raises(OverflowError, match=r"asks for 11\.72 KiB beside the weights"):
            rehearse(lambda: Table(size), entries)
    else:
        rehearse(lambda: Table(size), entries)


def test_a_large_checkpoint_may_have_large_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "TABLES", 0)
    rehearse(lambda: Table(600), ENTRIES)
    with pytest.raises(OverflowError, match=r"may have 8\.00 KiB"):
        rehearse(lambda: Table(700), ENTRIES)
