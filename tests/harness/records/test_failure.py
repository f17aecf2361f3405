from __future__ import annotations

import re

import pytest
import torch

from harness.matrix import ROOT
from harness.records import failure as failures
from harness.records.failure import (
    LONGEST_MESSAGE,
    LONGEST_PATH,
    describe,
    fingerprint,
    head,
    normalised,
    scrub,
    tail,
)


def caught(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_numbers_paths_and_addresses_do_not_count():
    first = fingerprint("RuntimeError", "layer 3 at 0x7f00aa in /a/b/c.py is off by 1.5e-3", "m.f")
    second = fingerprint("RuntimeError", "layer 12 at 0x1 in /x/y.py is off by 2", "m.f")
    assert first == second
    assert first != fingerprint("RuntimeError", "layer 3 is missing", "m.f")
    assert first != fingerprint(
        "ValueError", "layer 3 at 0x7f00aa in /a/b/c.py is off by 1.5e-3", "m.f"
    )
    assert first != fingerprint("RuntimeError", "layer 3 at 0x1 in /a/b is off by 1", "m.g")
    assert re.fullmatch("[0-9a-f]{12}", first)


def test_normalised_is_short():
    assert normalised("a\n  b 12") == "a b N"


def test_a_failure_inside_the_harness_names_its_frame():
    from harness.measuring.parity import compare

    one, other = torch.zeros(1, 2), torch.zeros(1, 3)
    failure = describe(caught(lambda: compare(one, other)))
    assert failure.exception == "ValueError"
    assert failure.fingerprint == describe(caught(lambda: compare(one, other))).fingerprint
    assert "harness/measuring/parity.py" in failure.traceback
    assert str(ROOT) not in failure.traceback


class HostileError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    "error",
    [
        HostileError(),
        ValueError("\x1b[31mred\x1b[0m\x00\ud800"),
        ValueError("x" * 1_000_000),
        ValueError(),
        KeyError(1),
    ],
)
def test_hostile_exceptions_are_described(error):
    failure = describe(error)
    assert failure.exception == type(error).__name__
    assert len(failure.message) <= LONGEST_MESSAGE
    (failure.message + failure.traceback).encode("utf-8")
    assert "\x1b" not in failure.message
    assert "\x00" not in failure.message


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f'File "{ROOT}/harness/matrix.py"', 'File "harness/matrix.py"'),
        ("/venv/lib/python3.11/site-packages/torch/nn/a.py:3", "torch/nn/a.py:3"),
        ('File ".tox/tf5.0.0/lib/site-packages/torch/nn/a.py"', 'File "torch/nn/a.py"'),
        ("cannot open /home/someone/models/x.safetensors", "cannot open <path>/x.safetensors"),
        ("in=/a/site-packages/b/site-packages/c.py", "in=c.py"),
        ("g++ -I/home/me/torch/include -L/opt/lib/x", "g++ -I<path>/include -L<path>/x"),
        ("read file:///home/someone/x.safetensors", "read file://<path>/x.safetensors"),
        ("see https://example.org/a/b#c", "see https://example.org/a/b#c"),
        ("a/b and 1/2", "a/b and 1/2"),
    ],
)
def test_scrub_removes_local_paths_only(text, clean):
    assert scrub(text) == clean


def test_only_what_is_kept_of_a_text_is_scrubbed(monkeypatch):
    seen = []
    monkeypatch.setattr(failures, "scrub", lambda text: seen.append(len(text)) or text)
    long = "x" * (16 << 20)
    assert head(long, 100) == tail(long, 100) == "x" * 100
    assert max(seen) <= 100 + LONGEST_PATH


@pytest.mark.parametrize("length", range(8_000, 8_030))
def test_a_cut_through_a_path_shows_no_part_of_it(length):
    long = "at /ZZZZZZZZ/ZZZZZZZZZZ/x.py " * 2_000
    for text in (head(long, length), tail(long, length)):
        assert "at <path>/x.py at" in text
        assert "Z" not in text
    assert head("short", length) == tail("short", length) == "short"


@pytest.mark.parametrize("piece", ["/a", "a/", "/", "/site-packages", "/site-packages/ ", "\x1b["])
def test_hostile_text_is_scrubbed_in_linear_time(piece):
    long = piece * (100_000 // len(piece))  # more than linear time is minutes to years here
    assert len(scrub(long)) <= len("<path>") + len(long)
    assert scrub(f"{long} /usr/lib/x.so /venv/site-packages/a.py").endswith(" <path>/x.so a.py")
