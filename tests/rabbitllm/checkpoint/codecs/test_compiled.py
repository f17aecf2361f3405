"""numba decodes where it works, and numpy where it does not."""

from __future__ import annotations

import builtins
import sys
from importlib.util import find_spec
from typing import Any

import pytest

from rabbitllm.checkpoint.codecs import compiled

LOOPS = "rabbitllm.checkpoint.codecs.loops"


@pytest.fixture(autouse=True)
def _anew() -> Any:
    compiled.compiled_loops.cache_clear()
    yield
    compiled.compiled_loops.cache_clear()


@pytest.mark.parametrize(
    "error",
    [
        ImportError("Numba needs NumPy 2.0 or less"),
        OSError("llvmlite.so: no such file"),
        AttributeError("'JITCPUCodegen' object has no attribute 'magic_tuple'"),
    ],
)
def test_one_that_is_broken_says_so_and_leaves_it_to_numpy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    usual = builtins.__import__

    def broken(name: str, *rest: Any) -> Any:
        if name == "rabbitllm.checkpoint.codecs" and "loops" in (rest[2] or ()):
            raise error
        return usual(name, *rest)

    monkeypatch.delitem(sys.modules, LOOPS, raising=False)
    monkeypatch.setattr(compiled, "find_spec", lambda name: object())
    monkeypatch.setattr(builtins, "__import__", broken)
    assert compiled.compiled_loops() is None
    assert f"numba cannot be used, so weights decode more slowly: {error}" in caplog.text


def test_where_there_is_none_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    assert compiled.compiled_loops() is None
    assert not caplog.text


@pytest.mark.skipif(not find_spec("numba"), reason="needs numba")
def test_where_it_works_its_loops_decode() -> None:
    loops = compiled.compiled_loops()
    assert loops
    assert loops.__name__ == LOOPS


@pytest.mark.skipif(not find_spec("numba"), reason="needs numba")
def test_where_it_shall_not_compile_it_is_left_to_numpy(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from numba import config

    monkeypatch.setattr(config, "DISABLE_JIT", 1)
    monkeypatch.delitem(sys.modules, LOOPS, raising=False)
    monkeypatch.delattr(LOOPS, raising=False)
    assert compiled.compiled_loops() is None
    assert "decode more slowly: NUMBA_DISABLE_JIT is set" in caplog.text
