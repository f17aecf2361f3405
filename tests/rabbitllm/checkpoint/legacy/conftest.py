"""Tiny checkpoints in the layout of their authors, and references written from the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING

from harness.measuring.references import REFERENCES
from harness.measuring.references.common import Decoder
from rabbitllm import StreamedModel
from rabbitllm.checkpoint import legacy
from rabbitllm.checkpoint.config import read_fields

Original = Callable[[str], tuple[Path, Decoder]]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Original:
    """`original(id)` -> a folder that all tests share (do not write there) and its reference."""
    made: dict[str, tuple[Path, Decoder]] = {}

    def get(architecture: str) -> tuple[Path, Decoder]:
        if architecture not in made:
            folder = tmp_path_factory.mktemp(architecture)
            REFERENCES[architecture].write(folder, 0)
            made[architecture] = folder, REFERENCES[architecture].reference(folder)
        return made[architecture]

    return get


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., tuple[Path, Decoder]]:
    """`copy(id)` -> a checkpoint to spoil, and its reference."""

    def write(architecture: str) -> tuple[Path, Decoder]:
        folder = tmp_path / architecture
        REFERENCES[architecture].write(folder, 0)
        return folder, REFERENCES[architecture].reference(folder)

    return write


@pytest.fixture
def without_native(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a transformers that has classes for none of the families."""
    known = {name: CONFIG_MAPPING[name] for name in {row.native for row in legacy.LEGACY}}
    monkeypatch.setattr(legacy, "CONFIG_MAPPING", known)


@pytest.fixture
def change_row(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`change_row(folder, change)`: the folder's row with the fields that `change(row)` returns."""

    def apply(folder: Path, change: Callable[[legacy.Legacy], dict[str, Any]]) -> None:
        mine = legacy.row_of(read_fields(folder))
        rows = tuple(replace(row, **change(row)) if row is mine else row for row in legacy.LEGACY)
        monkeypatch.setattr(legacy, "LEGACY", rows)

    return apply


@pytest.fixture
def ids() -> torch.Tensor:
    """Token ids [2, 24]."""
    return torch.randint(3, 150, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def distance() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """`distance(got, wanted)`: the largest difference, relative to the largest logit."""

    def measure(got: torch.Tensor, wanted: torch.Tensor) -> float:
        return float((got - wanted).abs().max() / wanted.abs().max())

    return measure


@pytest.fixture(scope="session")
def run() -> Callable[..., torch.Tensor]:
    """`run(model, ids)` -> logits without gradients."""

    def forward(model: StreamedModel, *args: Any, **kwargs: Any) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = model(*args, **kwargs).logits
        return logits

    return forward
