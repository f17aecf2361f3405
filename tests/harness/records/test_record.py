from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest

from harness.records import RecordError, from_json, to_json
from harness.records.record import DEEPEST


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
        ({"status": "fine"}, "^status: Unknown value 'fine'. Available: pass, degraded"),
        ({"status": "xpass"}, "a judgement"),
        ({"seconds": "1"}, "^seconds: expected float, got '1'"),
        ({"seconds": -1}, "^seconds: -1.0 is less than nothing"),
        ({"more": 1}, "^Unknown key 'more'. Available: architecture, "),
        ({"time": "yesterday"}, "^time: 'yesterday' is not of the form"),
        ({"engine_hash": "0" * 15}, "^engine_hash: '0+' is not of the form"),
        ({"device": "tpu"}, "^device: Unknown value 'tpu'. Available: cpu, cuda"),
        ({"backend": ""}, "^backend: '' is not of the form"),
        ({"checks": {"speed": {}}}, "^checks.speed: missing 'status'"),
        ({"checks": {"speed": {"status": "pass", "seconds": -1}}}, "^seconds: -1.0 is less"),
        ({"checks": {"speed": {"status": "xfail"}}}, "a judgement"),
        ({"expected": "why"}, "a judgement"),
        ({"schema": 0}, "schema 0, expected 1"),
    ],
)
def test_what_is_not_as_a_record_is_none(cell_record, change, message):
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


def test_a_record_names_no_folder_of_this_machine(cell_record):
    home, scratch = Path.home(), tempfile.gettempdir()
    message = f"c++ -I{sys.base_prefix}/include {home}/x https://h.co/{scratch}/y {scratch}ber"
    text = from_json(to_json(cell_record(message=message))).message
    assert text == f"c++ -I<python>/include ~/x https://h.co/<tmp>/y {scratch}ber"
