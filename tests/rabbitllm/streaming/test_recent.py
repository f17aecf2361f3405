from __future__ import annotations

from rabbitllm.streaming.recent import Recent


def asked(recent: Recent, stage: str, numbers: list[int]) -> int:
    """Has a stage ask for rows and keep what it can; returns how many were there."""
    found = [number for number in numbers if recent.find(stage, number) is not None]
    for number in numbers:
        if not recent.has(stage, number):
            slot = recent.make_room(stage, numbers)
            if slot is None:
                break
            recent.keep(stage, number, slot)
    return len(found)


def test_what_was_used_last_stays() -> None:
    recent = Recent(range(2, 5))
    for numbers in ([1], [2], [3], [1], [4]):
        asked(recent, "a", numbers)
    assert [number for number in range(6) if recent.has("a", number)] == [1, 3, 4]
    assert len(recent) == 3


def test_stages_in_turn_find_their_last_rows_in_fewer_slots_than_all_ask_for() -> None:
    """With one order for all, each would give up what the next one is about to ask for."""
    recent, stages = Recent(range(6)), ["a", "b", "c"]
    found = [asked(recent, stage, [0, 1, 2]) for _ in range(4) for stage in stages]
    assert found[3:] == [2] * 9


def test_a_stage_does_not_take_the_only_slot_of_another() -> None:
    recent = Recent(range(2))
    for _ in range(3):
        found = [asked(recent, stage, [7]) for stage in "abc"]
    assert found == [1, 1, 0]


def test_rows_in_use_are_not_given_up_for_one_another() -> None:
    recent = Recent(range(2))
    asked(recent, "a", [1, 2])
    assert recent.make_room("a", [1, 2, 3]) is None
    assert recent.make_room("a", [2, 3]) is not None
    assert not recent.has("a", 1)


def test_one_slot_holds_one_row() -> None:
    recent = Recent(range(4, 9))
    for step in range(40):
        asked(recent, "ab"[step % 2], [step % 3, step % 5, step % 7])
    slots = [recent.find(stage, n) for stage in "ab" for n in range(7) if recent.has(stage, n)]
    assert len(slots) == len(set(slots)) == len(recent) == 5
    assert set(slots) == set(range(4, 9))


def test_other_slots_give_up_what_lies_outside() -> None:
    recent = Recent(range(4))
    asked(recent, "a", [0, 1, 2, 3])
    recent.use(range(2, 6))
    assert len(recent) == 2
    assert {recent.find("a", n) for n in range(4)} == {None, 2, 3}
    asked(recent, "a", [8, 9])
    assert len(recent) == 4
    assert {recent.find("a", 8), recent.find("a", 9)} == {4, 5}
