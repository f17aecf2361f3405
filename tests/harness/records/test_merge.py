from __future__ import annotations

import pytest

from harness.__main__ import main
from harness.matrix import load_matrix
from harness.records import Store, read_all
from harness.records.merge import merge, write
from harness.running.selection import Shard

COUNT = 3


@pytest.fixture
def records(cell_record):
    cells = load_matrix().cells(["5.0.0", "5.1.0"], ["llama", "qwen2", "gemma2"], ["eager", "sdpa"])
    return {
        cell.id: cell_record(
            architecture=cell.architecture.id, release=cell.release, backend=cell.backend.id
        )
        for cell in cells
    }, cells


def test_shards_together_give_the_files_of_one_run(records, tmp_path):
    by_cell, cells = records
    write(by_cell.values(), tmp_path / "one")
    folders = [tmp_path / str(number) for number in range(1, COUNT + 1)]
    for number, folder in enumerate(folders, start=1):
        write([by_cell[cell.id] for cell in Shard(number, COUNT).of(cells)], folder)
    assert main(["merge", *map(str, folders), "--into", str(tmp_path / "all")]) == 0
    one, together = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.jsonl")}
        for name in ("one", "all")
    )
    assert len(one) == 2
    assert together == one


def test_the_newest_of_several_records_wins_and_is_named(cell_record, tmp_path, capsys):
    old = cell_record(time="2026-01-01T00:00:00Z")
    new = cell_record(time="2026-01-02T00:00:00Z", status="fail")
    for name, record in (("a", new), ("b", old)):
        write([record], tmp_path / name)
    folders = [str(tmp_path / name) for name in "ab"]
    assert main(["merge", *folders, "--into", str(tmp_path / "c")]) == 0
    assert read_all(tmp_path / "c") == [new]
    assert f"{new.cell}: several records, the newest was taken" in capsys.readouterr().out


def test_the_same_record_twice_is_no_conflict(cell_record, tmp_path):
    for name in "ab":
        write([cell_record()], tmp_path / name)
    merged = merge([tmp_path / name for name in "ab"])
    assert merged.duplicates == ()
    assert merged.records == (cell_record(),)


def test_other_cells_of_the_target_stay(cell_record, tmp_path):
    kept, brought = cell_record(backend="eager"), cell_record()
    write([kept], tmp_path / "into")
    write([brought], tmp_path / "shard")
    main(["merge", str(tmp_path / "shard"), "--into", str(tmp_path / "into")])
    assert Store(tmp_path / "into", "5.0.0").read() == [kept, brought]


@pytest.mark.parametrize("made", [True, False])
def test_a_shard_without_records_is_refused(made, cell_record, tmp_path, capsys):
    write([cell_record()], tmp_path / "a")
    if made:
        (tmp_path / "b").mkdir()
    folders = [str(tmp_path / name) for name in "ab"]
    assert main(["merge", *folders, "--into", str(tmp_path / "c")]) == 2
    assert str(tmp_path / "b") in capsys.readouterr().err
    assert not (tmp_path / "c").exists()
