from __future__ import annotations

import json
import os
import threading

import pytest

from harness.results import Store, StoreError, from_json, to_json, write_atomically
from harness.strict import StrictError


def test_a_record_survives_json(cell_record):
    record = cell_record(message="line\nline", probes={"cache_lengths": [3, 3]})
    assert from_json(to_json(record), "here") == record


def test_json_is_one_line_whatever_a_message_holds(cell_record):
    text = to_json(cell_record(message="\ud800 \u2028 \x85 \r\n", probes={"nan": float("nan")}))
    assert "\n" not in text
    assert json.loads(text)["probes"] == {"nan": None}
    text.encode("utf-8")


def test_a_store_keeps_a_line_for_each_cell_in_order(tmp_path, cell_record):
    store = Store(tmp_path / "results", "5.0.0")
    store.put([cell_record(architecture="qwen2"), cell_record(architecture="llama")])
    store.put([cell_record(architecture="llama", backend="eager"), cell_record(status="fail")])
    store.put([cell_record(architecture="llama", device="cuda")])
    keys = [record.key for record in store.read()]
    assert keys == [
        ("llama", "eager", "cpu"),
        ("llama", "sdpa", "cpu"),
        ("llama", "sdpa", "cuda"),
        ("qwen2", "sdpa", "cpu"),
    ]
    assert {r.key: r.status for r in store.read()}["llama", "sdpa", "cpu"] == "fail"


def test_unusual_line_separators_in_a_message_do_not_split_it(tmp_path, cell_record):
    store = Store(tmp_path, "5.0.0")
    record = cell_record(message="a\u2028b\x85c\x0bd")
    store.put([record])
    assert store.read() == [record]


def test_writers_do_not_lose_each_others_records(tmp_path, cell_record):
    names = [f"a{number:02}" for number in range(12)]

    def write(name: str) -> None:
        Store(tmp_path, "5.0.0").put([cell_record(architecture=name)])

    threads = [threading.Thread(target=write, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [record.architecture for record in Store(tmp_path, "5.0.0").read()] == names


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"schema": 1, "arch', r"transformers-5.0.0.jsonl:2: .*Delete that line"),
        ('{"schema": 99}', r"jsonl:2: schema 99, expected 1"),
        ('["schema"]', r"jsonl:2: expected a record"),
        ("<<<<<<< HEAD", r"jsonl:2: "),
    ],
)
def test_a_corrupt_line_is_named_and_nothing_is_lost(tmp_path, cell_record, line, message):
    store = Store(tmp_path, "5.0.0")
    store.put([cell_record()])
    with store.path.open("a") as file:
        file.write(f"{line}\n")
    before = store.path.read_bytes()
    with pytest.raises(StoreError, match=message):
        store.put([cell_record(architecture="qwen2")])
    assert store.path.read_bytes() == before


def test_an_unknown_status_is_no_record(cell_record):
    text = to_json(cell_record()).replace('"status": "pass"', '"status": "fine"')
    with pytest.raises(StrictError, match=r"Unknown value 'fine'. Available: pass"):
        from_json(text, "here")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
