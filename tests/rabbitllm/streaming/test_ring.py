from __future__ import annotations

import pytest
from torch import nn

from rabbitllm.streaming.ring import Ring
from rabbitllm.streaming.weights import Stage

A, B, C, D = (Stage(name, (nn.Identity(),), ()) for name in "ABCD")


def names(stages: list[Stage]) -> str:
    return "".join(stage.name for stage in stages)


def test_behind_the_last_comes_the_first() -> None:
    ring = Ring([A, B, C])
    assert names(ring.ahead(2)) == "AB"
    for stage, ahead in ((A, "BC"), (B, "CA"), (C, "AB"), (A, "BC")):
        ring.advance(stage)
        assert names(ring.ahead(2)) == ahead


def test_of_what_comes_twice_the_next_occurrence_is_taken_and_ahead_it_counts_once() -> None:
    ring = Ring([A, B, A, C])
    for stage, ahead in ((A, "BAC"), (A, "CAB"), (A, "BAC"), (B, "ACB")):
        ring.advance(stage)
        assert names(ring.ahead(3)) == ahead


@pytest.mark.parametrize("order", [[C, B, A], [B]])
def test_what_a_forward_ran_is_the_order_of_the_next(order: list[Stage]) -> None:
    ring = Ring([A, B, C])
    ring.advance(B)
    ring.learn(order)
    assert len(ring) == len(order)
    assert ring.ahead(4) == order


def test_what_is_not_in_the_order_moves_nothing() -> None:
    ring = Ring([A, B, C])
    ring.advance(B)
    ring.advance(D)
    assert names(ring.ahead(2)) == "CA"


def test_an_empty_ring_has_nothing_ahead() -> None:
    ring = Ring([])
    ring.advance(A)
    assert ring.ahead(2) == []
