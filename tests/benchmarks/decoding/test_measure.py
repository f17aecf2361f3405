import json
from pathlib import Path

import pytest

from benchmarks.decoding import measure


def test_each_codec_has_a_pace_beside_the_lossless_unpack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(measure.ROWS, "cpu", 256)
    monkeypatch.setattr(measure, "COLUMNS", 512)
    monkeypatch.setattr(measure, "TURNS", 1)
    out = tmp_path / "decoding.jsonl"
    assert measure.main(["--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    names = [measure.LOSSLESS, *measure.codecs("float16", 256)]
    assert [record["codec"] for record in records] == 2 * names
    assert all(record["made"] > 0 for record in records)
    half = next(record for record in records if record["codec"] == "fp8 channel")
    assert half["read"] / half["made"] == pytest.approx(0.5, abs=0.01)
    lines = capsys.readouterr().out.splitlines()
    assert "of lossless, bfloat16" in lines[0]
    assert [line.split("|")[1].strip() for line in lines[2:] if line] == names
