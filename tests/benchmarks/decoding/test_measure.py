from __future__ import annotations

import pytest

from benchmarks.decoding import measure


def test_each_codec_has_a_pace_beside_the_lossless_unpack(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "ROWS", 256)
    monkeypatch.setattr(measure, "COLUMNS", 512)
    monkeypatch.setattr(measure, "TURNS", 1)
    paces = measure.measure("float16")
    assert list(paces) == [measure.LOSSLESS, *measure.codecs("float16")]
    assert all(pace > 0 for pace in paces.values())
    assert measure.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "of lossless, bfloat16" in lines[0]
    assert [line.split("|")[1].strip() for line in lines[2:]] == list(paces)
