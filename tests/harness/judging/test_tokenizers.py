from __future__ import annotations

import pytest

from harness.judging.changes import compare
from harness.judging.expected_failures import fails_run, judge
from harness.judging.tokenizers import TOKENIZER, told_apart
from harness.records import CheckResult
from tests.harness.judging.test_expected_failures import ENTRY

WRONG = CheckResult("stock-wrong", {"tokenizer": "llama2"}, message="6 of 39 differ")
RIGHT = CheckResult("pass", {"tokenizer": "llama2"})
GOLDEN = CheckResult("stock-wrong", message="other logits")


def measured(cell_record, tokenizer, **changes):
    """A record as a cell with a tokenizer leaves it."""
    checks = {"prefill_parity": CheckResult("pass"), TOKENIZER: tokenizer}
    values = {"checks": checks | changes.pop("checks", {}), "status": tokenizer.status}
    if tokenizer.message:
        values["message"] = f"{TOKENIZER}: {tokenizer.message}"
    return cell_record(**(values | changes))


def test_a_tokenizer_turns_no_model(cell_record):
    model, tokenizer = told_apart([measured(cell_record, WRONG)])
    assert (model.status, model.message, set(model.checks)) == ("pass", "", {"prefill_parity"})
    assert tokenizer.key == (model.architecture, TOKENIZER, "cpu")
    assert (tokenizer.status, tokenizer.message) == ("stock-wrong", "tokenizer: 6 of 39 differ")
    assert fails_run(judge(tokenizer, []))


def test_what_else_is_wrong_stays(cell_record):
    first, _ = told_apart([measured(cell_record, WRONG, checks={"golden": GOLDEN})])
    assert (first.status, first.message) == ("stock-wrong", "golden: other logits")
    other = {"checks": {"golden": GOLDEN}, "message": "golden: other logits\nDiagnosis: here."}
    second, _ = told_apart([measured(cell_record, WRONG, **other)])
    assert second.message == other["message"]


def test_the_newest_of_an_architecture_and_a_release_counts(cell_record):
    records = [
        measured(cell_record, WRONG, time="2026-01-02T00:00:00Z"),
        measured(cell_record, RIGHT, backend="eager", time="2026-01-03T00:00:00Z"),
        cell_record(backend="flex_attention", checks={TOKENIZER: CheckResult("not-run")}),
    ]
    *models, tokenizer = told_apart(records)
    assert [model.backend for model in models] == [record.backend for record in records]
    assert tokenizer.status == "pass"


@pytest.mark.parametrize(("backend", "expected"), [("*", False), (TOKENIZER, True)])
def test_only_an_entry_that_says_so_is_about_a_tokenizer(cell_record, backend, expected):
    row = vars(ENTRY) | {"backend": backend, "exception": "", "message": "6 of 39 differ"}
    entry = type(ENTRY)(**row)
    model, tokenizer = told_apart([measured(cell_record, WRONG, release="5.1.0")])
    assert bool(judge(tokenizer, [entry]).expected) is expected
    assert judge(model, [entry]).status == ("pass" if expected else "xpass")


def test_a_comparison_has_a_line_for_a_tokenizer(cell_record):
    before, after = (told_apart([measured(cell_record, found)]) for found in (RIGHT, WRONG))
    worse, same = compare(before, after)
    assert (worse.kind, worse.side, same.kind) == ("regressed", "transformers", "same")
    assert f"/{TOKENIZER}/cpu" in worse.cell
