from __future__ import annotations

from rabbitllm.errors import summary


def test_a_short_error_is_one_line() -> None:
    assert summary(ValueError("no such\n  key")) == "ValueError: no such key"


def test_of_a_long_error_what_is_wrong_and_what_to_do_are_kept() -> None:
    frames = "\n".join(f"frame #{i}: at::native::something + 0x{i:x}" for i in range(50))
    said = summary(RuntimeError(f"it is broken\n{frames}\nPass the argument mend=True."))
    assert said.startswith("RuntimeError: it is broken frame #0")
    assert " [...] " in said
    assert said.endswith("Pass the argument mend=True.")
    assert len(said) <= 510
