"""Many askers of a model of toy size."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.askers.measure import main


def test_each_row_has_a_line_and_the_table_compares_them(tmp_path: Path) -> None:
    out = tmp_path / "askers.jsonl"
    options = ["--shape", "tiny", "--folder", str(tmp_path), "--out", str(out)]
    options += ["--budget", "min", "--clients", "1,3", "--requests", "2", "--new-tokens", "8"]
    assert main([*options, "--prompts", "5", "--at-once", "4"]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["part"] for record in records] == [
        "serve",
        "serve",
        "batch",
        "fixed",
        "fixed",
        "all-fixed",
    ]
    one, three, batch, *fixed, all_fixed = records
    assert (one["clients"], one["new_tokens"], one["passes"]) == (1, 2, 3)
    assert (three["clients"], three["prompts"], three["new_tokens"]) == (3, 6, 48)
    assert 16 <= three["passes"] < 48
    assert (batch["prompts"], batch["new_tokens"]) == (5, 40)
    assert batch["at_once"] > 1
    assert [each["at_once"] for each in fixed] == [5, 2]
    assert [each["new_tokens"] for each in fixed] == [40, 16]
    assert (all_fixed["at_once"], all_fixed["new_tokens"]) == (5, batch["new_tokens"])
    table = out.with_suffix(".md").read_text()
    assert table.count("\n| serve, ") == 2
    assert "| 1.0 x " in table
    assert "| 100% " in table
