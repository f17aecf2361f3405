from __future__ import annotations

import os
import re
import threading

import pytest

from harness.records import RecordError, Store, read_all, write_atomically


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
        (b'{"schema": 1, "arch', r"transformers-5.0.0.jsonl:2 is no record .*Unterminated string"),
        (b'{"schema": 99}', r"jsonl:2 is no record .*schema 99, expected 1"),
        (b'["schema"]', r"jsonl:2 .*expected a table"),
        (b"<<<<<<< HEAD", r"jsonl:2 .*Expecting value"),
        (b"\xff\xfe", r"jsonl:2 .*can't decode"),
        (b"[" * 100_000 + b"]" * 100_000, r"jsonl:2 .*nested deeper than 50 levels"),
        (b"1" * 5_000, r"jsonl:2 .*digits"),
    ],
)
def test_a_damaged_line_is_named_and_kept_aside(tmp_path, cell_record, caplog, line, message):
    store = Store(tmp_path, "5.0.0")
    store.put([cell_record()])
    with store.path.open("ab") as file:
        file.write(line + b"\n")
    assert store.read() == [cell_record()]
    assert len(caplog.messages) == 1
    assert re.search(message, caplog.messages[0])
    store.put([cell_record(architecture="qwen2")])
    assert [record.architecture for record in store.read()] == ["llama", "qwen2"]
    assert store.damaged.read_bytes() == line + b"\n"
    assert len(caplog.messages) == 2  # reading the mended store had nothing to say


def test_a_record_of_another_release_is_left_out_and_kept_aside(tmp_path, cell_record, caplog):
    store, other = Store(tmp_path, "5.3.0"), Store(tmp_path, "5.2.0")
    store.put([cell_record(release="5.3.0")])
    other.put([cell_record(release="5.2.0", architecture="qwen2")])
    with store.path.open("ab") as file:
        file.write(other.path.read_bytes())
    assert [record.architecture for record in store.read()] == ["llama"]
    assert re.search(
        r"transformers-5.3.0.jsonl:2 is no record of this file .*"
        r"it is of transformers 5.2.0, this file of 5.3.0",
        caplog.text,
    )
    store.put([cell_record(release="5.3.0", architecture="gemma2")])
    assert store.damaged.read_bytes() == other.path.read_bytes()
    with pytest.raises(RecordError, match=r"it is of transformers 5.2.0"):
        store.put([cell_record(release="5.2.0")])


def test_what_is_no_record_is_not_written(tmp_path, cell_record):
    store = Store(tmp_path, "5.0.0")
    store.put([cell_record()])
    before = store.path.read_bytes()
    with pytest.raises(RecordError, match="a judgement"):
        store.put([cell_record(architecture="qwen2", status="xfail")])
    assert store.path.read_bytes() == before


def test_a_folder_holds_the_records_of_all_releases(tmp_path, cell_record):
    for release in ("5.1.0", "5.0.0"):
        Store(tmp_path, release).put([cell_record(release=release)])
    assert [record.release for record in read_all(tmp_path)] == ["5.0.0", "5.1.0"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is not a folder of records"):
        read_all(tmp_path / "nowhere")


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
