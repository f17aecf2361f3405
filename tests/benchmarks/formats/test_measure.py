"""The measurement of number formats, on a model of toy size."""

import json
from pathlib import Path

import pytest
from transformers import LlamaConfig

from benchmarks.checkpoints import SHAPES
from benchmarks.formats.measure import main


def test_each_format_and_compression_has_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    monkeypatch.setitem(SHAPES, "toy", config)
    out = tmp_path / "formats.jsonl"
    options = ["--shape", "toy", "--folder", str(tmp_path), "--new-tokens", "3", "--remove"]
    assert main([*options, "--formats", "bf16,fp8,int4,lossless", "--out", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["format"] for record in records] == ["bf16", "fp8", "int4", "lossless"]
    assert all(record["as_resident"] for record in records)
    plain, fp8, int4, lossless = (record["moved_bytes"] for record in records)
    assert 0.25 < int4 / plain < fp8 / plain < 0.6
    assert 0.7 < lossless / plain < 1
    assert "| fp8" in out.with_suffix(".md").read_text()
    assert "NO" not in capsys.readouterr().out
    assert not (tmp_path / "toy-fp8").exists()
