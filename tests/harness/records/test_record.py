from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path

import pytest

from harness.records import CheckResult, Record, RecordError, from_json, to_json
from harness.records.record import DEEPEST, SCHEMA_FILE


def test_a_record_survives_json(cell_record):
    record = cell_record(message="line\nline", probes={"cache_lengths": [3, 3]})
    assert from_json(to_json(record)) == record


def test_json_is_one_line_whatever_a_message_holds(cell_record):
    text = to_json(cell_record(message="\ud800 \u2028 \x85 \r\n", probes={"nan": float("nan")}))
    assert "\n" not in text
    assert json.loads(text)["probes"] == {"nan": None}
    text.encode("utf-8")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"status": "fine"}, "status must be one of"),
        ({"status": "xpass"}, "status must be one of"),  # a judgement, not a measurement
        ({"seconds": "1"}, "seconds must be number"),
        ({"more": 1}, r"must not contain \{'more'\}"),
        ({"time": "yesterday"}, "time must match pattern"),
        ({"checks": {"speed": {}}}, r"checks.speed must contain"),
        ({"expected": "why"}, "expected must be same as const"),
        ({"schema": 0}, "schema 0, expected 1"),
    ],
)
def test_what_does_not_fit_the_schema_is_no_record(cell_record, change, message):
    text = json.dumps(json.loads(to_json(cell_record())) | change)
    with pytest.raises(RecordError, match=message):
        from_json(text)


def test_what_can_be_read_can_be_written_again(cell_record):
    deep: object = 0
    for _ in range(DEEPEST - 1):
        deep = [deep]
    record = from_json(to_json(cell_record(probes={"deep": deep[0][0]})))
    assert from_json(to_json(record)) == record
    with pytest.raises(RecordError, match="nested deeper than 50 levels"):
        from_json(to_json(cell_record(probes={"deep": [deep]})))


def test_the_schema_has_the_fields_of_a_record():
    schema = json.loads(SCHEMA_FILE.read_text("utf-8"))
    fields = {field.name for field in dataclasses.fields(Record)}
    assert set(schema["properties"]) == set(schema["required"]) == fields
    check = schema["definitions"]["check"]
    fields = {field.name for field in dataclasses.fields(CheckResult)}
    assert set(check["properties"]) == set(check["required"]) == fields


def test_a_record_names_no_folder_of_this_machine(cell_record):
    home, scratch = Path.home(), tempfile.gettempdir()
    message = f"c++ -I{sys.base_prefix}/include {home}/x https://h.co/{scratch}/y {scratch}ber"
    text = from_json(to_json(cell_record(message=message))).message
    assert text == f"c++ -I<python>/include ~/x https://h.co/<tmp>/y {scratch}ber"
