from __future__ import annotations

import pytest

from harness.records import from_json, to_json
from harness.records.blank import blank
from harness.records.provenance import check_hash, engine_hash


@pytest.mark.parametrize("status", ["pass", "not-run", "env-error"])
def test_a_blank_record_fits_the_schema_and_names_its_cell_and_code(cell, status):
    chosen = cell("qwen2", "eager", "5.1.0")
    record = blank(chosen, status, "why")
    assert from_json(to_json(record)) == record
    assert (record.cell, record.status, record.message) == (chosen.id, status, "why")
    assert record.model_class == chosen.architecture.model_class
    assert (record.engine_hash, record.check_hash) == (engine_hash(), check_hash(chosen))
