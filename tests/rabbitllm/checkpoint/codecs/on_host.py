"""By what the host decodes: every road of it has the same bits."""

from __future__ import annotations

import pytest

from rabbitllm.checkpoint.codecs import compiled, scaled, words


@pytest.fixture(params=["numpy", "numba"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What decodes on the host."""
    found: str = request.param
    if found == "numba":
        pytest.importorskip("numba", reason="the extra `numba` is not installed")
        assert compiled.compiled_loops()
    else:
        for module in (scaled, words):
            monkeypatch.setattr(module, "compiled_loops", lambda: None)
    return found
