"""What stands beside accelerate, with processes and cgroups left out."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.formats import beside
from benchmarks.peers.compare import DifferentTokensError

FAILURE = {"failed": "ended with 1: it needs a package\nmore of it"}


def given(tokens: dict[str, list[int]]) -> Callable[..., dict[str, Any]]:
    """Figures in place of what a process measures; those without tokens fail."""

    def run_peer(name: str, folder: Path, device: str, *others: Any) -> dict[str, Any]:
        if name not in tokens:
            return FAILURE
        figures = {"tokens_per_second": 0.5, "load_seconds": 3.0}
        return figures | {"peer": name, "tokens": tokens[name]}

    return run_peer


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The limits under which processes ran."""
    found = []

    def in_group(name: str, run: Any, folder: Path, nbytes: int) -> dict[str, Any]:
        found.append(nbytes)
        prefix: Sequence[str] = ()
        return {"scenario": name, **run(prefix), "peak_bytes": nbytes}

    monkeypatch.setattr(beside, "in_group", in_group)
    return found


def test_both_run_under_the_same_limit(
    monkeypatch: pytest.MonkeyPatch, limits: list[int], tmp_path: Path
) -> None:
    same = {name: [1, 2, 3] for name in beside.PEERS}
    monkeypatch.setattr(beside, "run_peer", given(same))
    records = list(beside.beside_accelerate(tmp_path, 10**9, 3))
    assert [record["scenario"] for record in records] == ["accelerate-disk", "rabbitllm"]
    assert limits == [10**9, 10**9]
    assert "| fp8" in beside.render([{"format": "fp8"} | record for record in records])


def test_what_cannot_be_loaded_is_said(
    monkeypatch: pytest.MonkeyPatch, limits: list[int], tmp_path: Path
) -> None:
    monkeypatch.setattr(beside, "run_peer", given({"rabbitllm": [1, 2, 3]}))
    records = list(beside.beside_accelerate(tmp_path, 10**9, 3))
    page = beside.render([{"format": "awq"} | record for record in records])
    assert "it needs a package" in page
    assert "more of it" not in page


def test_other_tokens_are_an_error(
    monkeypatch: pytest.MonkeyPatch, limits: list[int], tmp_path: Path
) -> None:
    other = {"accelerate-disk": [1, 2, 3], "rabbitllm": [1, 5, 3]}
    monkeypatch.setattr(beside, "run_peer", given(other))
    with pytest.raises(DifferentTokensError):
        list(beside.beside_accelerate(tmp_path, 10**9, 3))
