from __future__ import annotations

from dataclasses import replace

import pytest

from harness.judging.changes import STATES, TRANSITIONS, changed_probes, compare, kind_of
from harness.judging.expected_failures import load_expected
from harness.records import CheckResult

GEMMA2 = {"architecture": "gemma2", "status": "fail", "exception": "ValueError"}
REFUSED = (
    "split_and_load: ValueError: Gemma2ForCausalLM does not support an attention implementation "
    "through torch.nn.functional.scaled_dot_product_attention yet."
)


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("pass", "pass", "same"),
        ("pass", "fail", "regressed"),
        ("pass", "degraded", "regressed"),
        ("degraded", "crash", "regressed"),
        ("pass", "flaky", "regressed"),
        ("pass", "unsupported", "regressed"),
        ("pass", "reference-broken", "regressed"),
        ("pass", "stock-wrong", "regressed"),
        ("pass", "stock-changed", "regressed"),
        ("stock-wrong", "pass", "fixed"),
        ("stock-wrong", "reference-broken", "same"),
        ("pass", "not-run", "lost"),
        ("fail", "env-error", "lost"),
        ("pass", None, "lost"),
        ("flaky", "fail", "spurious"),
        ("flaky", "pass", "spurious"),
        ("fail", "flaky", "spurious"),
        ("fail", "pass", "fixed"),
        ("degraded", "pass", "fixed"),
        ("fail", "timeout", "same"),
        ("fail", "degraded", "same"),
        ("unsupported", "unsupported", "same"),
        ("unsupported", "fail", "new"),
        (None, "fail", "new"),
        ("not-run", "pass", "new"),
        ("not-run", "not-run", "not-comparable"),
    ],
)
def test_two_statuses_make_a_kind(before, after, kind, cell_record):
    old, new = (cell_record(status=s) if s else None for s in (before, after))
    assert kind_of(old, new) == kind


def test_every_pair_of_states_has_a_kind(cell_record):
    statuses = [*STATES, "fail"]
    assert TRANSITIONS[-1][:2] == ("*", "*")
    kinds = {
        kind_of(cell_record(status=a), cell_record(status=b)) for a in statuses for b in statuses
    }
    assert len(kinds) == 7


def test_records_of_other_checks_do_not_compare(cell_record):
    old, new = cell_record(check_hash="0" * 16), cell_record(check_hash="1" * 16, status="fail")
    (change,) = compare([old], [new])
    assert change.kind == "not-comparable"
    assert "other checks" in change.why


def test_a_check_that_no_longer_runs_is_lost_although_the_cell_passes(cell_record):
    silent = {"prefill_parity": CheckResult("not-run", message="nothing to compare with")}
    (change,) = compare([cell_record()], [cell_record(checks=silent)])
    assert change.kind == "lost"
    assert change.why == "prefill_parity no longer runs: nothing to compare with"


def test_one_release_each_is_compared_across_releases(cell_record):
    (change,) = compare([cell_record(release="5.0.0")], [cell_record(release="5.1.0")])
    assert (change.kind, change.cell) == ("same", "llama@5.1.0/sdpa/cpu")


def test_a_device_that_one_of_two_releases_never_saw_is_no_news(cell_record):
    old = [cell_record(release="5.0.0")]
    new = [cell_record(release="5.1.0", device=device) for device in ("cpu", "cuda")]
    for before, after in ((old, new), (new, old)):
        changes = compare(before, after)
        assert [c.kind for c in changes] == ["not-comparable", "same"]
        assert changes[0].why == "5.0.0 was not measured on cuda"
        assert changes[0].cell == f"llama@{after[0].release}/sdpa/cuda"


def test_the_cells_of_a_device_that_the_same_release_had_are_lost(cell_record):
    records = [cell_record(device=device) for device in ("cpu", "cuda")]
    assert [c.kind for c in compare(records, records[:1])] == ["lost", "same"]


def test_a_lost_cell_is_named_by_the_release_that_lacks_it(cell_record):
    others = [cell_record(release="5.1.0", backend="eager")]
    changes = compare([cell_record(release="5.0.0")], others)
    assert [(c.kind, c.cell) for c in changes] == [
        ("lost", "llama@5.1.0/sdpa/cpu"),
        ("new", "llama@5.1.0/eager/cpu"),
    ]


def test_several_releases_are_compared_each_with_itself(cell_record):
    both = [cell_record(release=release) for release in ("5.0.0", "5.1.0")]
    changes = compare(both, both[1:])
    assert [(c.kind, c.cell[:11]) for c in changes] == [
        ("lost", "llama@5.0.0"),
        ("same", "llama@5.1.0"),
    ]


def test_a_regression_that_the_list_knows_has_its_cause_and_side(cell_record):
    old = cell_record(architecture="gemma2", release="5.20.2")
    new = replace(old, release="5.21.1", **GEMMA2, message=REFUSED)
    refused = CheckResult("fail", message=REFUSED, exception="ValueError")
    new = replace(new, checks={"split_and_load": refused})
    (change,) = compare([old], [new], load_expected())
    assert (change.kind, change.side, change.known) == ("regressed", "transformers", True)
    assert change.why.startswith("pass, now fail: Gemma 2 softcaps")
    assert "ValueError: split_and_load" in change.why


def test_a_regression_that_nobody_knows_is_blamed_by_its_status(cell_record):
    sides = {
        **dict.fromkeys(("reference-broken", "stock-wrong", "stock-changed"), "transformers"),
        "fail": "rabbitllm",
        "env-error": "environment",
    }
    for status, side in sides.items():
        new = cell_record(status=status, message="boom\nmore", explanation="A known cause.")
        (change,) = compare([cell_record()], [new], load_expected())
        assert (change.side, change.known) == (side, False)
        assert change.why == f"pass, now {status}: A known cause. (message: boom)"


def test_another_cause_of_the_same_failure_is_pointed_out(cell_record):
    old = cell_record(status="fail", fingerprint="a" * 12, message="one")
    new = replace(old, fingerprint="b" * 12, message="two")
    (change,) = compare([old], [new])
    assert (change.kind, change.why) == ("same", "fails for another cause than before: two")


@pytest.mark.parametrize(
    ("before", "after", "kind", "place"),
    [
        ((0.5, 3, None), (0.5, 3, None), "same", ""),
        ((0.5, 3, None), (0.52, 3, None), "same", ""),
        ((0.5, 3, None), (0.6, 3, None), "regressed", "further from"),
        ((0.5, 3, None), (0.5, 3, 9), "regressed", "further from"),
        ((1e-6, 0, 5), (2e-6, 0, 5), "same", ""),
        ((1e-6, 0, 5), (1e-6, 0, 2), "regressed", "further from"),
        ((1e-6, 0, 2), (1e-6, 0, 5), "same", "nearer to"),
        ((0.5, 3, 2), (1e-6, 0, 2), "same", "nearer to"),
    ],
)
def test_wrong_answers_that_change_are_told(before, after, kind, place, cell_record):
    def record(relative: float, positions: int, token: int | None):
        figures = {"relative": relative, "positions": positions, "first_other_token": token}
        checks = {"golden": CheckResult("stock-wrong", figures)}
        return cell_record(status="stock-wrong", checks=checks, message="golden: other answers")

    (change,) = compare([record(*before)], [record(*after)])
    assert change.kind == kind
    why = f"stock's answers changed, {place} the golden ones: golden: other answers"
    assert change.why == (why if place else "")


def test_the_worst_comes_first(cell_record):
    old = [cell_record(backend=name) for name in ("eager", "sdpa", "flash_attention_2")]
    new = [cell_record(backend="eager"), cell_record(backend="sdpa", status="fail")]
    assert [c.kind for c in compare(old, new)] == ["regressed", "lost", "same"]


def test_probes_are_compared_where_both_sides_have_them(cell_record):
    old = cell_record(probes={"cache_keyword": "past_key_values", "layer_returns": "Tensor"})
    new = cell_record(probes={"cache_keyword": "cache", "layer_returns": "Tensor"})
    assert changed_probes(old, new) == {"cache_keyword": ("past_key_values", "cache")}
    assert changed_probes(old, cell_record()) == {}
