"""The comparison of answers in a batch with those alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.agreement.measure import compare, pieces
from benchmarks.askers.asked import write_asked
from rabbitllm import AutoModel
from rabbitllm.batching.forward import Forward


def test_prompts_follow_one_another_and_have_different_lengths() -> None:
    cut = pieces(range(1000), 12)
    assert [token for piece in cut for token in piece] == list(range(sum(map(len, cut))))
    assert len({len(piece) for piece in cut}) == 12
    with pytest.raises(ValueError, match="has 100 tokens"):
        pieces(range(100), 12)


def test_what_parts_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_asked("tiny", tmp_path / "tiny", "cpu")
    model = AutoModel.from_pretrained(folder, device="cpu", dtype="float32")
    prompts = pieces(range(3, 400), 6)
    figures = compare(model, prompts, 10, 4)
    assert (figures["parted"], figures["agreement"], figures["margins"]) == (0, 1.0, [])
    assert figures["tokens"] == 10 + 9 + 8 + 7 + 6 + 5
    call = Forward.__call__
    monkeypatch.setattr(Forward, "__call__", lambda *args: -call(*args))
    other = compare(model, prompts, 10, 4)
    assert other["parted"] == 6
    assert other["agreement"] < 0.1
