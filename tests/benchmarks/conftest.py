from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.checkpoints import SHAPES, write_checkpoint


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    return write_checkpoint(SHAPES["tiny"], folder, torch.bfloat16, "cpu")
