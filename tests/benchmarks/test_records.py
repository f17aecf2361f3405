from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.records import write_as_they_come


def render(records: Any) -> str:
    return f"{len(records)} rows"


def test_all_records_so_far_are_there_when_a_run_is_cut_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run.jsonl"

    def measured() -> Iterator[dict[str, Any]]:
        yield {"row": 1}
        yield {"row": 2}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_as_they_come(measured(), out, render)
    assert [json.loads(line) for line in out.read_text().splitlines()] == [{"row": 1}, {"row": 2}]
    assert out.with_suffix(".md").read_text() == "2 rows"
    assert not capsys.readouterr().out
    assert write_as_they_come([{"row": 3}], out, render) == [{"row": 3}]
    assert capsys.readouterr().out == "1 rows\n"
