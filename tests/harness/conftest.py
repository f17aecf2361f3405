from __future__ import annotations

import pytest

from harness.matrix import Cell, load_matrix
from harness.records import CheckResult, Record


def make_cell(architecture: str = "llama", backend: str = "sdpa", release: str = "5.0.0") -> Cell:
    return load_matrix().cells([release], [architecture], [backend])[0]


def make_cell_record(**changes: object) -> Record:
    values: dict[str, object] = {
        "architecture": "llama",
        "family": "Llama 2 / 3",
        "family_class": "RabbitLLMLlama2",
        "model_class": "LlamaForCausalLM",
        "dtype": "float32",
        "release": "5.0.0",
        "backend": "sdpa",
        "device": "cpu",
        "status": "pass",
        "checks": {"prefill_parity": CheckResult("pass", {"max_abs": 0.0}, 0.1)},
    }
    return Record(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def cell():
    return make_cell


@pytest.fixture
def cell_record():
    return make_cell_record
