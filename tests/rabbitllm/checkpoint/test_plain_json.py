from __future__ import annotations

import json
from pathlib import Path

import pytest

from rabbitllm.checkpoint.plain_json import MOST_BYTES, MOST_VALUES, parse, read_settings


def test_settings_are_read_as_json_reads_them(tmp_path: Path) -> None:
    settings = {"a": [1, 2.5, None], "b": {"ä": "x, [y] {z}"}}
    file = tmp_path / "config.json"
    file.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    assert read_settings(file) == settings


def test_a_file_larger_than_any_settings_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(" " * (MOST_BYTES - 2) + "{}")
    assert read_settings(file) == {}
    file.write_text(" " * (MOST_BYTES - 1) + "{}")
    with pytest.raises(ValueError, match=f"{MOST_BYTES + 1:,} bytes; at most {MOST_BYTES:,} are"):
        read_settings(file)


def test_a_small_file_of_too_many_values_is_not_parsed(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text("[" + "0," * (MOST_VALUES - 2) + "0]")
    assert len(read_settings(file)) == MOST_VALUES - 1
    file.write_text("[" + "0," * MOST_VALUES + "0]")
    with pytest.raises(ValueError, match=f"more than {MOST_VALUES:,} values"):
        read_settings(file)


@pytest.mark.parametrize("text", [b"[[], []]", b'{"a": {}, "b": 1}', b'[{"a": 1}]'])
def test_containers_count_as_their_members_do(text: bytes) -> None:
    assert parse(text, 4) == json.loads(text)
    with pytest.raises(ValueError, match="more than 1 values"):
        parse(text, 1)


def test_what_is_no_utf8_is_no_json() -> None:
    with pytest.raises(UnicodeDecodeError):
        parse(json.dumps({"a": 1}).encode("utf-16"), 10)
