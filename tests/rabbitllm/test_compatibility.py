from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rabbitllm.compatibility import remarks


def cell(architecture: str, attention: str, status: str, **fields: str) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "transformers": "5.21.1",
        "attention": attention,
        "device": "cpu",
        "status": status,
    } | fields


@pytest.fixture
def summary(tmp_path: Path) -> Path:
    cells = [
        cell("llama", "sdpa", "pass"),
        cell("llama", "eager", "pass"),
        cell("llama", "flash_attention_2", "not-run", device="cuda"),
        cell("gemma2", "sdpa", "unsupported"),
        cell("gemma2", "eager", "pass"),
        cell("phi", "sdpa", "fail"),
        cell("phi", "eager", "degraded"),
        cell("phi", "sdpa", "pass", transformers="5.0.0"),
    ]
    path = tmp_path / "compatibility.json"
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_a_release_is_summed_up_and_the_way_out_named(summary: Path) -> None:
    assert remarks("5.21.1", summary) == [
        "transformers 5.21.1: 1 of 3 architectures pass everywhere",
        "gemma2 needs eager (sdpa on cpu: unsupported)",
        "phi does not pass (sdpa on cpu: fail, eager on cpu: degraded)",
    ]


def test_a_release_without_exceptions_is_one_line(summary: Path) -> None:
    assert remarks("5.0.0", summary) == ["transformers 5.0.0: 1 of 1 architectures pass everywhere"]


def test_an_unmeasured_release_is_not_called_good(summary: Path) -> None:
    assert remarks("6.0", summary) == [
        "transformers 6.0 was not measured (measured: 5.21.1, 5.0.0)"
    ]


def test_without_a_summary_nothing_is_claimed(tmp_path: Path) -> None:
    assert remarks("5.0.0", tmp_path / "absent.json") == ["no table packaged"]
