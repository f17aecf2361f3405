from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import transformers

from harness.measuring.cell import measure
from harness.measuring.checks import published_format as check


@pytest.fixture
def measured(cell, tmp_path):
    """Measure a cell's check alone."""

    def run(architecture: str) -> Any:
        found = cell(architecture, "sdpa", transformers.__version__)
        row = replace(found.architecture, checks=("published_format",), dealt=())
        return measure(replace(found, architecture=row, dealt=()), tmp_path)

    return run


def fails(error: Exception) -> Any:
    def load(*given: Any) -> None:
        raise error

    return load


def test_a_format_that_the_release_reads_by_itself_is_compared(measured):
    found = measured("qwen3_moe-fp8").checks["published_format"]
    assert (found.status, found.figures["relative"]) == ("pass", 0)


def test_a_package_that_is_not_there_is_a_fact(measured, monkeypatch):
    monkeypatch.setattr(check, "load_quantised", fails(ImportError("gptqmodel is needed")))
    found = measured("qwen3_moe-fp8").checks["published_format"]
    assert found.status == "not-run"
    assert "(ImportError: gptqmodel is needed)" in found.message


def test_an_error_that_nobody_expects_is_no_fact(measured, monkeypatch):
    monkeypatch.setattr(check, "load_quantised", fails(ZeroDivisionError("a fault of the check")))
    found = measured("qwen3_moe-fp8").checks["published_format"]
    assert found.status not in ("pass", "not-run")
    assert "a fault of the check" in found.message
