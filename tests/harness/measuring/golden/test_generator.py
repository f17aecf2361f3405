from __future__ import annotations

import hashlib

import numpy as np
import pytest

from harness.measuring.golden.generator import bits, encoded, halvings, token_ids, weight


def splitmix64(state: int, count: int) -> list[int]:
    """The published algorithm, in integers of Python."""
    found = []
    for _ in range(count):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        found.append(z ^ (z >> 31))
    return found


def test_bits_are_those_of_the_published_algorithm():
    # The first two of seed 0, as other implementations of it give them.
    assert splitmix64(0, 2) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    seed = int.from_bytes(hashlib.sha256(b"a").digest()[:8], "little")
    assert bits("a", 5).tolist() == splitmix64(seed, 5)


def test_another_name_has_other_bits():
    assert not set(bits("a", 100).tolist()) & set(bits("b", 100).tolist())


def test_token_ids_stay_in_their_range():
    assert set(token_ids("a", 1000, 3, 64)) == set(range(3, 64))


@pytest.mark.parametrize(
    ("key", "shape", "low", "high"),
    [
        ("q_proj.weight", (64, 64), -0.25, 0.25),
        ("down_proj.weight", (64, 128), -0.25, 0.25),
        ("patch_embedding.weight", (32, 3, 8, 8), -0.25, 0.25),
        ("kv_b_proj.weight", (160, 16), -0.5, 0.5),
        ("q_proj.bias", (4096,), -1, 1),
        ("e_score_correction_bias", (4096,), -1, 1),
        ("norm.weight", (4096,), 0.75, 1.25),
    ],
)
def test_values_fill_their_range_and_none_is_zero(key, shape, low, high):
    values = weight("a", key, shape)
    assert values.shape == shape
    assert low <= values.min() < low + (high - low) / 50
    assert high - (high - low) / 50 < values.max() <= high
    assert values.all()
    assert abs(values.mean() - (low + high) / 2) < (high - low) / 30


def test_a_matrix_is_bounded_by_its_fan_in():
    assert [halvings(fan_in) for fan_in in (1, 4, 15, 16, 63, 64, 255, 256)] == [
        0, 0, 0, 1, 1, 2, 2, 3,
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("key", ["x.weight", "x.bias"])
def test_no_dtype_rounds_a_value(dtype, key):
    values = weight("a", key, (256, 64))
    data = np.frombuffer(encoded(values, dtype), "<u4" if dtype == "F32" else "<u2")
    assert data.size == values.size


def test_a_value_that_would_be_rounded_is_refused():
    with pytest.raises(ValueError, match="BF16 would round"):
        encoded(np.array([1 + 2**-8], dtype=np.float32), "BF16")
    with pytest.raises(ValueError, match="F16 would round"):
        encoded(np.array([1 + 2**-11], dtype=np.float32), "F16")
