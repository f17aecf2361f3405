from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.checkpoints import SHAPES, write_checkpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    return write_checkpoint(SHAPES["tiny"], root / "tiny", torch.float32, "cpu")
