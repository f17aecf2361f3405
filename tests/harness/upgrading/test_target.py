from __future__ import annotations

import pytest

from harness.upgrading.target import Target, parse_target

LISTED = ["5.0.0", "5.24.0"]
INDEX = ["5.24.0", "5.23.0", "5.25.0rc1"]


def test_a_row_of_the_table_is_its_own_environment():
    assert parse_target("5.24.0", LISTED, []) == Target("5.24.0")


@pytest.mark.parametrize("text", ["5.25.0rc1", "5.25.0-rc.1"])
def test_another_release_is_asked_from_the_index(text):
    assert parse_target(text, LISTED, INDEX) == Target("5.25.0rc1", "transformers==5.25.0rc1")


def test_a_wheel_is_named_with_what_is_in_it(tmp_path):
    wheel = tmp_path / "transformers-5.25.0.dev0-py3-none-any.whl"
    wheel.write_bytes(b"one")
    first = parse_target(str(wheel), LISTED, [])
    wheel.write_bytes(b"two")
    second = parse_target(str(wheel), LISTED, [])
    assert first.release == second.release == "5.25.0.dev0"
    assert first.requirement.startswith(f"transformers @ {wheel.as_uri()}#sha256=")
    assert first.requirement != second.requirement
    assert first.changes


def test_a_checkout_is_run_from_where_it_is(tmp_path):
    file = tmp_path / "src" / "transformers" / "__init__.py"
    file.parent.mkdir(parents=True)
    file.write_text('# a comment\n__version__ = "5.25.0.dev0"\n')
    found = parse_target(str(tmp_path), LISTED, [])
    assert found == Target("5.25.0.dev0", f"-e {tmp_path}", True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: "5.99.0", "no transformers 5.99.0. Near: "),
        (lambda folder: "newish", "'newish' is no release"),
        (lambda folder: str(folder), "is no checkout"),
        (lambda folder: str(touch(folder / "notes.txt")), "is no wheel"),
        (lambda folder: str(touch(folder / "torch-2.0-py3-none-any.whl")), "a wheel of torch"),
    ],
)
def test_anything_else_is_refused(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        parse_target(make(tmp_path), LISTED, INDEX)


def touch(path):
    path.touch()
    return path
