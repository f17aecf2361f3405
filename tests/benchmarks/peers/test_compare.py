from __future__ import annotations

from typing import Any

import pytest

from benchmarks.peers.compare import DifferentTokensError, check_tokens, render


def record(peer: str, tokens: list[int], speed: float = 2.0, **more: Any) -> dict[str, Any]:
    versions = {"torch": "2.13.0", "transformers": "5.23.0", "accelerate": "1.15.0"}
    return {
        "peer": peer,
        "how": "layers on disk",
        "tokens": tokens,
        "tokens_per_second": speed,
        "load_seconds": 1.25,
        "peak_device_bytes": None,
        "versions": versions,
        "model": "tiny",
        "hardware": "cpu x 2",
    } | more


def test_a_peer_that_generates_fewer_tokens_is_compared_as_far_as_it_goes() -> None:
    check_tokens([record("stock", [5, 6, 7]), record("slow", [5, 6]), record("b", [5, 6, 7])])


@pytest.mark.parametrize(
    ("tokens", "says"),
    [
        ([5, 9], r"slow and stock part at token 2 of 2: 9 and 6.*no table"),
        ([4, 6, 7], r"part at token 1 of 3: 4 and 5"),
        ([5], r"stock and slow have 1 tokens in common"),
    ],
)
def test_tokens_that_differ_or_are_too_few_refuse_the_comparison(
    tokens: list[int], says: str
) -> None:
    with pytest.raises(DifferentTokensError, match=says):
        check_tokens([record("stock", [5, 6, 7]), record("slow", tokens)])


def test_the_last_of_several_peers_is_compared_too() -> None:
    with pytest.raises(DifferentTokensError, match="third"):
        check_tokens([record("stock", [5, 6]), record("b", [5, 6]), record("third", [5, 7])])


def test_the_table_gives_each_speed_its_ratio_and_names_who_is_missing() -> None:
    slow = record("slow", [5, 6], 0.5, peak_device_bytes=2_500_000_000)
    slow["versions"] = slow["versions"] | {"slow": "4.0.0"}
    fast = record("stock", [5, 6, 7], 2.0, peak_device_bytes=15_000_000_000)
    text = render([fast, slow], ["other ended with 1: no room\ntraceback"])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()[:4]]
    assert cells[0] == [
        "peer",
        "weights",
        "tokens/s",
        "of stock",
        "tokens",
        "s to load",
        "peak device GB",
    ]
    assert cells[2][:5] == ["stock", "layers on disk", "2.00", "1x", "3"]
    assert cells[3] == ["slow 4.0.0", "layers on disk", "0.50", "0.25x", "2", "1.20", "2.50"]
    assert "Not measured: other ended with 1: no room\n" in text
    assert "traceback" not in text
    assert "tiny, batch 1, greedy" in text


def test_the_table_has_no_column_for_a_device_that_there_is_not() -> None:
    assert "peak device" not in render([record("stock", [1, 2]), record("b", [1, 2])])
