from __future__ import annotations

import random

import pytest

from harness.judging.changes import compare
from harness.judging.speed import FEWEST_CELLS, compare_speed, costs
from harness.records import CheckResult

NAMES = [f"a{number}" for number in range(12)]


@pytest.fixture
def run(cell_record):
    """Return records whose rounds vary by 4%, and whose processes do by 3%, about a cost of 2."""

    def records(seed, factors=(), device="cpu", names=NAMES, **changes):
        generator = random.Random(seed)
        made = []
        for name in names:
            offset = generator.gauss(1, 0.03) * dict(factors).get(name, 1)
            load = [generator.choice((1, 3)) for _ in range(12)]
            stock = [0.002 * heavy for heavy in load]
            ours = [2 * s * offset * generator.gauss(1, 0.04) for s in stock]
            figures = {
                "streamed_cpu_seconds_per_token": ours,
                "stock_cpu_seconds_per_token": stock,
                "streamed_tokens_per_second": [1 / s for s in ours],
                "stock_tokens_per_second": [1 / s for s in stock],
            }
            checks = {"speed": CheckResult("pass", figures)}
            made.append(cell_record(architecture=name, checks=checks, device=device, **changes))
        return made

    return records


def speed(before, after):
    return compare_speed(compare(before, after))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_fifth_more_is_found_and_said(run, device):
    found = speed(run(1, device=device), run(2, dict.fromkeys(NAMES, 1.2), device))
    assert found.verdict == "slower"
    assert 0.12 < found.change < 0.28
    assert found.p < 0.01
    assert "12 cells" in found.why


def test_a_gain_is_no_loss(run):
    assert speed(run(1, dict.fromkeys(NAMES, 1.3)), run(2)).verdict == "faster"


def test_the_same_code_is_not_significant_in_fifty_tries(run):
    found = [speed(run(2 * seed), run(2 * seed + 1)) for seed in range(50)]
    assert {one.verdict for one in found} == {"not significant"}


def test_a_significant_change_too_small_to_matter_does_not_count(run):
    many = [f"a{number}" for number in range(60)]
    found = speed(run(1, names=many), run(2, dict.fromkeys(many, 1.03), names=many))
    assert found.verdict == "not significant"
    assert "less than 5%" in found.why


def test_one_cell_that_takes_twice_as_long_is_named(run):
    found = speed(run(1), run(2, {"a3": 2.0}))
    assert found.verdict == "slower"
    assert [cell.cell for cell in found.alone] == ["a3@5.0.0/sdpa/cpu"]
    assert "a3@5.0.0/sdpa/cpu became slower" in found.why


@pytest.mark.parametrize(
    "changed", [{"hardware": "cpu of another class"}, {"check_hash": "1" * 16}]
)
def test_other_hardware_and_other_checks_do_not_compare(run, changed):
    found = speed(run(1), run(2, dict.fromkeys(NAMES, 3.0), **changed))
    assert found.verdict == "not comparable"
    assert "(12 otherwise)" in found.why


def test_few_cells_do_not_compare(run):
    few = NAMES[: FEWEST_CELLS - 1]
    assert speed(run(1, names=few), run(2, names=few)).verdict == "not comparable"


def test_a_cell_that_was_not_timed_has_no_costs(cell_record):
    assert costs(cell_record()) == []
    assert costs(cell_record(checks={"speed": CheckResult("not-run")})) == []
