from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rabbitllm.streaming.roads import Roads, Turn, pass_seconds

CUDA, SECOND = torch.device("cuda", 0), torch.device("cuda", 1)
MB = 10**6
TURN = 0.7e-3
ROADS = Roads(link=50e9, host={1: 100e9, 8: 20e9}, threads=6, crossing=1e-3, turn=TURN)


def turn(road: str, size: int = 100, device: torch.device = CUDA) -> Turn:
    """A stage of so many MB."""
    return Turn(road, device, size * MB, size * MB)  # type: ignore[arg-type]


def seconds(
    *turns: Turn, slots: tuple[int, ...] = (100, 100), tokens: int = 1, ahead: bool = False
) -> float:
    sizes = {device: [size * MB for size in slots] for device in (CUDA, SECOND)}
    return pass_seconds(turns, sizes, replace(ROADS, ahead=ahead), tokens)


def test_what_stays_takes_its_turn_and_what_moves_its_bytes() -> None:
    assert seconds(*[turn("stay")] * 5) == pytest.approx(5 * TURN)
    assert seconds(*[turn("link")] * 5) == pytest.approx(5 * 2e-3)
    assert seconds(*[turn("disk")] * 5) == pytest.approx(5 * 0.1)
    assert seconds(turn("rows", 10)) == pytest.approx(10 * MB / 50e9 + TURN)


def test_the_host_computes_at_the_pace_of_as_many_tokens() -> None:
    assert seconds(turn("host")) == pytest.approx(1e-3 + 1e-3)
    assert seconds(turn("host"), tokens=8) == pytest.approx(5e-3 + 1e-3)


def test_the_link_goes_on_while_the_host_computes_as_far_as_slots_are_free() -> None:
    link, host = 2e-3, 2e-3
    assert seconds(*[turn("link"), turn("host")] * 4) == pytest.approx(4 * (host + TURN))
    # Four in a row on the host: two come meanwhile, and two more only behind them.
    assert seconds(*[turn("link")] * 4, *[turn("host")] * 4) == pytest.approx(
        4 * host + 2 * (link + TURN)
    )
    wider = seconds(*[turn("link")] * 4, *[turn("host")] * 4, slots=(100,) * 4)
    assert wider == pytest.approx(4 * host + 4 * TURN)


def test_launching_takes_no_time_behind_a_cpu_that_computes_longer() -> None:
    host = 2e-3
    few = [turn("host"), turn("stay"), turn("stay")]
    assert seconds(*few * 4) == pytest.approx(4 * (host + 2 * TURN))
    assert seconds(*few * 4, ahead=True) == pytest.approx(4 * host)
    many = [turn("host"), *[turn("stay")] * 5]
    assert seconds(*many * 4, ahead=True) == pytest.approx(4 * 5 * TURN)
    # What comes before the CPU's first turn, and so behind the end of the pass before, does.
    assert seconds(turn("stay"), *few, ahead=True) == pytest.approx(TURN + host)
    assert seconds(*[turn("stay")] * 5, ahead=True) == pytest.approx(5 * TURN)
    assert seconds(*[turn("link"), turn("host")] * 4, ahead=True) == pytest.approx(4 * host + TURN)


def test_a_stage_waits_for_a_slot_that_it_fits() -> None:
    pair = (turn("link"), turn("link"))
    assert seconds(*pair, slots=(100, 100)) == pytest.approx(2 * 2e-3)
    assert seconds(*pair, slots=(100, 10)) == pytest.approx(2 * (2e-3 + TURN))
    assert seconds(turn("link"), turn("link", 10), slots=(100, 10)) == pytest.approx(2e-3 + TURN)


def test_each_device_has_a_link() -> None:
    dealt = [turn("link", device=device) for device in (CUDA, SECOND)] * 4
    assert seconds(*dealt) == pytest.approx(4 * 2e-3)
