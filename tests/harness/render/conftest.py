from __future__ import annotations

from typing import Any

import pytest

RELEASES = ("5.0.0", "5.1.0", "5.23.0")


def make_record(**changes: Any) -> dict[str, Any]:
    record = {
        "schema": 1,
        "architecture": "llama",
        "family": "Llama 2 / 3",
        "family_class": "RabbitLLMLlama2",
        "release": "5.0.0",
        "backend": "sdpa",
        "device": "cpu",
        "status": "pass",
        "message": "",
        "fingerprint": "",
        "checks": {
            "prefill_parity": {
                "status": "pass",
                "figures": {"max_abs": 0.0, "nmse": 0.0, "bit_equal": True},
                "seconds": 0.11,
                "message": "",
            },
            "cache_fill": {
                "status": "pass",
                "figures": {"layers": 4},
                "seconds": 0.1,
                "message": "",
            },
        },
        "probes": {"layer_returns": "Tensor", "cache_keyword": "past_key_values"},
        "versions": {"transformers": "5.0.0", "torch": "2.13.0"},
        "hardware": "x86_64, 2 cores",
        "engine_hash": "0123456789abcdef",
        "check_hash": "fedcba9876543210",
        "seconds": 1.5,
        "cpu_seconds": 1.25,
        "time": "2026-01-02T03:04:05Z",
    }
    unknown = set(changes) - set(record)
    assert not unknown, unknown
    return record | changes


@pytest.fixture
def record():
    return make_record


@pytest.fixture
def three_releases() -> list[dict[str, Any]]:
    """Three architectures on three releases: gemma2 fails with sdpa on the newest, as listed."""
    families = {
        "llama": "Llama 2 / 3",
        "gemma2": "Gemma 2 / 3",
        "qwen3_moe": "Qwen2 / 2.5 / 3",
    }
    records = [
        make_record(architecture=name, family=family, release=release, backend=backend)
        for name, family in families.items()
        for release in RELEASES
        for backend in ("eager", "sdpa")
    ]
    for made in records:
        if (made["architecture"], made["release"], made["backend"]) == ("gemma2", "5.23.0", "sdpa"):
            made |= {"status": "xfail", "message": "ValueError: gemma2 has no sdpa\nsecond line"}
    return records
