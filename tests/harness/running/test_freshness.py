from __future__ import annotations

import dataclasses

import pytest

from harness.records.provenance import check_hash, engine_hash
from harness.running.freshness import stale

VERSIONS = {"torch": "2.13.0", "transformers": "5.0.0"}
HARDWARE = "cpu x86_64 AVX512 2 cores"


@pytest.fixture
def current(cell, cell_record):
    """A cell and the record that a run of it would give now."""
    llama = cell()
    record = cell_record(
        versions=VERSIONS,
        hardware=HARDWARE,
        engine_hash=engine_hash(),
        check_hash=check_hash(llama),
    )
    return llama, record


def test_a_cell_whose_record_is_current_does_not_run(current):
    llama, record = current
    assert stale([llama], [record], VERSIONS, HARDWARE) == []


@pytest.mark.parametrize(
    "change",
    [
        {"engine_hash": "0" * 16},
        {"check_hash": "0" * 16},
        {"versions": VERSIONS | {"accelerate": "1.0"}},
        {"hardware": "cpu aarch64 DEFAULT 2 cores"},
        {"status": "not-run"},
        {"status": "flaky"},
        {"backend": "eager"},
    ],
)
def test_a_cell_runs_when_anything_that_its_record_comes_from_changed(current, change):
    llama, record = current
    assert stale([llama], [dataclasses.replace(record, **change)], VERSIONS, HARDWARE) == [llama]


def test_a_failure_is_a_result_like_any_other(current):
    llama, record = current
    failed = dataclasses.replace(record, status="fail")
    assert stale([llama], [failed], VERSIONS, HARDWARE) == []


def test_a_row_of_the_matrix_is_part_of_what_a_record_comes_from(current):
    llama, record = current
    row = dataclasses.replace(llama.architecture, notes="other")
    changed = dataclasses.replace(llama, architecture=row)
    assert stale([changed], [record], VERSIONS, HARDWARE) == [changed]
