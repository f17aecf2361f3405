from __future__ import annotations

from typing import Any

import pytest

from harness.records import CheckResult, Record

RELEASES = ("5.0.0", "5.1.0", "5.23.0")
CHECKS = {
    "prefill_parity": CheckResult("pass", {"max_abs": 0.0, "nmse": 0.0, "bit_equal": True}, 0.11),
    "cache_fill": CheckResult("pass", {"layers": 4}, 0.1),
}


def make_record(**changes: Any) -> Record:
    record = {
        "architecture": "llama",
        "family": "Llama 2 / 3",
        "family_class": "RabbitLLMLlama2",
        "model_class": "LlamaForCausalLM",
        "dtype": "float32",
        "release": "5.0.0",
        "backend": "sdpa",
        "device": "cpu",
        "status": "pass",
        "checks": CHECKS,
        "probes": {"layer_returns": "Tensor", "cache_keyword": "past_key_values"},
        "versions": {"transformers": "5.0.0", "torch": "2.13.0"},
        "hardware": "cpu x86_64 AVX2 2 cores",
        "engine_hash": "0123456789abcdef",
        "check_hash": "fedcba9876543210",
        "seconds": 1.5,
        "cpu_seconds": 1.25,
        "time": "2026-01-02T03:04:05Z",
    }
    return Record(**(record | changes))


@pytest.fixture
def record():
    return make_record


@pytest.fixture
def three_releases() -> list[Record]:
    """Three architectures on three releases: gemma2 fails with sdpa on the newest, as listed."""
    families = {
        "llama": "Llama 2 / 3",
        "gemma2": "Gemma 2 / 3",
        "qwen3_moe": "Qwen2 / 2.5 / 3",
    }
    cells = [(name, r, b) for name in families for r in RELEASES for b in ("eager", "sdpa")]
    failing = {"status": "xfail", "exception": "ValueError", "message": "no sdpa\nsecond line"}
    return [
        make_record(architecture=name, family=families[name], release=release, backend=backend)
        if (name, release, backend) != ("gemma2", "5.23.0", "sdpa")
        else make_record(
            architecture=name, family=families[name], release=release, backend=backend, **failing
        )
        for name, release, backend in cells
    ]
