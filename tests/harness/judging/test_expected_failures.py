from __future__ import annotations

import time
from dataclasses import replace
from datetime import date

import pytest

from harness.judging.expected_failures import Expected, fails_run, judge, load_expected, problems
from harness.matrix import load_matrix
from harness.records import CheckResult
from harness.tables import TableError

ENTRY = Expected(
    architecture="llama*",
    backend="sdpa",
    transformers=">=5.1,<5.9",
    exception="RuntimeError",
    message="size of tensor a (*)",
    side="rabbitllm",
    why="The batch dimension is lost.",
    link="https://example.org/1",
    expires=date(2030, 1, 1),
)
FAILED = CheckResult(
    "fail", message="RuntimeError: size of tensor a (14)", exception="RuntimeError"
)


def failing(cell_record, **changes):
    values = {"release": "5.1.0", "status": "fail", "checks": {"prefill_parity": FAILED}}
    return cell_record(**(values | changes))


def test_an_expected_failure_becomes_xfail(cell_record):
    record = judge(failing(cell_record), [ENTRY])
    assert record.status == "xfail"
    assert "The batch dimension is lost." in record.expected
    assert not fails_run(record)


@pytest.mark.parametrize(
    "changes",
    [
        {"release": "5.0.0"},
        {"release": "5.9.0"},
        {"architecture": "qwen2"},
        {"backend": "eager"},
        {"checks": {"prefill_parity": replace(FAILED, message="another error")}},
        {"checks": {"prefill_parity": replace(FAILED, exception="ValueError")}},
        {"checks": {"prefill_parity": FAILED, "cache_fill": CheckResult("degraded", message="x")}},
    ],
)
def test_anything_else_still_fails(cell_record, changes):
    record = judge(failing(cell_record, **changes), [ENTRY])
    assert record.status == "fail"
    assert fails_run(record)


def test_several_entries_may_explain_one_cell(cell_record):
    checks = {"prefill_parity": FAILED, "cache_fill": CheckResult("degraded", message="unfilled")}
    other = replace(ENTRY, exception="", message="unfilled", why="Another cause.")
    record = judge(failing(cell_record, checks=checks), [ENTRY, other])
    assert record.status == "xfail"
    assert "lost" in record.expected
    assert "Another cause." in record.expected


def test_a_pass_that_should_fail_is_an_error(cell_record):
    record = judge(cell_record(release="5.1.0"), [ENTRY])
    assert record.status == "xpass"
    assert "passes now" in record.message
    assert fails_run(record)


@pytest.mark.parametrize("status", ["reference-broken", "stock-wrong", "stock-changed"])
def test_what_is_stocks_own_fault_stays_so_and_needs_an_entry(cell_record, status):
    broken = cell_record(
        release="5.1.0",
        status=status,
        exception="RuntimeError",
        message="size of tensor a (14)",
        checks={},
    )
    assert fails_run(judge(broken, []))
    known = judge(broken, [replace(ENTRY, side="transformers")])
    assert known.status == status
    assert not fails_run(known)


@pytest.mark.parametrize("status", ["not-run", "unsupported", "pass"])
def test_no_failure_no_fault(cell_record, status):
    assert not fails_run(judge(cell_record(status=status), []))


@pytest.mark.parametrize("status", ["timeout", "crash", "flaky", "degraded", "env-error"])
def test_every_kind_of_failure_counts(cell_record, status):
    assert fails_run(judge(cell_record(status=status, checks={}, message="m"), []))


def test_an_entry_past_its_expiry_is_reported():
    cells = load_matrix().cells(["5.1.0"])
    assert problems([ENTRY], cells, date(2029, 12, 31)) == []
    assert "expired on 2030-01-01" in problems([ENTRY], cells, date(2030, 1, 1))[0]


def test_an_entry_that_matches_no_cell_is_reported():
    cells = load_matrix().cells(["5.0.0"])
    found = problems([ENTRY], cells, date(2029, 1, 1))
    assert found == [
        "matrix/expected_failures.toml, llama*/sdpa on >=5.1,<5.9: matches no cell of the matrix"
    ]


ROW = """
[[expected]]
architecture = "llama"
backend = "sdpa"
transformers = ">=5.1"
exception = "RuntimeError"
message = "size of tensor a"
side = "rabbitllm"
why = "The batch dimension is lost."
link = "https://example.org/1"
expires = 2030-01-01
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('">=5.1"', '"5.1"', "transformers: Invalid specifier: '5.1'"),
        ('">=5.1"', "5.1", "transformers: expected str, got 5.1"),
        ('"RuntimeError"', '"Runtime Error"', "exception: expected the name of a type, got"),
        ('"size of tensor a"', '""', "message: would be found in every message"),
        ('"size of tensor a"', '"**"', "message: would be found in every message"),
        ('"rabbitllm"', '"torch"', "side: Unknown value 'torch'. Available: rabbitllm,"),
        ('"The batch dimension is lost."', '" "', "why: is empty"),
        ('"llama"', '""', "architecture: is empty"),
        ("https:", "http:", "link: expected an https address, got 'http://example.org/1'"),
        ("https://example.org/1", "javascript:alert(1)", "link: expected an https address"),
        ("https://example.org/1", "https:///1", "link: expected an https address"),
        ("2030-01-01", '"2030-01-01"', "expires: expected date, got '2030-01-01'"),
        ("2030-01-01", "2030-01-01T00:00:00", "expires: expected date, got datetime"),
        (
            "expires",
            'device = "gpu"\nexpires',
            "device: Unknown device 'gpu'. Available: cpu",
        ),
    ],
)
def test_an_entry_that_is_wrong_is_named_with_its_line(tmp_path, old, new, message):
    path = tmp_path / "expected_failures.toml"
    path.write_text(ROW + ROW.replace(old, new))
    with pytest.raises(TableError) as caught:
        load_expected(tmp_path)
    begin = f"{tmp_path.name}/expected_failures.toml:13, expected 2: {message}"
    assert str(caught.value).startswith(begin)


def test_no_pattern_takes_long():
    entry = replace(ENTRY, message="(a+)+$" + "*a" * 1_000)
    begun = time.process_time()
    assert not entry.explains("RuntimeError", "a" * 1_000_000 + "b")
    assert time.process_time() - begun < 1


def test_the_list_of_this_checkout_is_readable():
    assert all(entry.why and entry.link for entry in load_expected())


def test_an_entry_may_name_several_architectures_and_texts() -> None:
    entry = replace(ENTRY, architecture="llama | qwen[23]*", message="size of (*) | unfilled")
    assert entry.selects(("qwen2", "sdpa", "cpu"), "5.1.0")
    assert entry.selects(("llama", "sdpa", "cpu"), "5.1.0")
    assert not entry.selects(("llama2", "sdpa", "cpu"), "5.1.0")
    assert entry.explains(ENTRY.exception, "the cache is unfilled")
    assert entry.explains(ENTRY.exception, "size of (14)")
    assert not entry.explains(ENTRY.exception, "size of nothing")
