from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rabbitllm.compatibility import PLACES, remarks


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
        cell("gemma2", "sdpa", "reference-broken"),
        cell("gemma2", "eager", "pass"),
        cell("phi", "sdpa", "fail"),
        cell("phi", "eager", "degraded"),
        cell("phi", "flex_attention", "stock-wrong"),
        cell("phi", "sdpa", "pass", transformers="5.0.0"),
    ]
    path = tmp_path / "compatibility.json"
    path.write_text(json.dumps({"cells": cells}))
    return path


def test_a_release_is_summed_up_and_the_way_out_named(summary: Path) -> None:
    assert remarks("5.21.1", summary=summary) == [
        "transformers 5.21.1: 1 of 3 architectures pass everywhere",
        "gemma2 needs eager (sdpa on cpu: stock fails)",
        "phi does not pass (sdpa on cpu: fail, eager on cpu: degraded, "
        "flex_attention on cpu: stock wrong)",
    ]


def test_a_release_without_exceptions_is_one_line(summary: Path) -> None:
    assert remarks("5.0.0", summary=summary) == [
        "transformers 5.0.0: 1 of 1 architectures pass everywhere"
    ]


def test_only_devices_that_are_there_count(summary: Path) -> None:
    assert remarks("5.21.1", ("cpu",), summary)[0].endswith("1 of 3 architectures pass everywhere")
    (alone,) = remarks("5.21.1", ("cuda",), summary)
    assert alone == "transformers 5.21.1 was not measured (measured: none)"


def test_an_unmeasured_release_is_not_called_good(summary: Path) -> None:
    assert remarks("6.0", summary=summary) == [
        "transformers 6.0 was not measured (measured: 2 releases from 5.21.1 to 5.0.0)"
    ]


def test_without_a_summary_nothing_is_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rabbitllm.compatibility.PLACES", (Path("absent.json"),))
    assert remarks("5.0.0") == ["no table packaged"]


def test_a_checkout_reads_what_the_harness_wrote() -> None:
    _, measured = PLACES
    newest = json.loads(measured.read_text())["cells"][-1]["transformers"]
    assert remarks(newest)[0].startswith(f"transformers {newest}: ")
