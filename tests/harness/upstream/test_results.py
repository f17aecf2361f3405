from __future__ import annotations

import pytest

from harness.tables import TableError
from harness.upstream import results
from harness.upstream.results import Result, Test, counted


def made(model, budget="min", **found):
    return Result(
        model=model, budget=budget, release="5.0.0", source="5.0.0", counts=counted([]), **found
    )


def test_tests_are_counted_by_outcome():
    counts = counted([Test(name=name, outcome="passed") for name in "abc"])
    assert counts["passed"] == 3
    assert sum(counts.values()) == 3
    assert list(counts) == list(results.MEANINGS)


def test_results_replace_those_of_their_model_and_budget_and_keep_others(tmp_path):
    path = results.path_of(tmp_path / "upstream", "5.0.0")
    results.put(path, [made("llama", apart=1), made("llama", "half"), made("phi3")])
    failed = Test(name="test_a", outcome="failed", failure="why")
    results.put(path, [made("llama", named=(failed,))])
    found = {(result.model, result.budget): result for result in results.read(path)}
    assert list(found) == [("llama", "half"), ("llama", "min"), ("phi3", "min")]
    assert found["llama", "min"].named == (failed,)
    assert found["llama", "min"].apart == 0


@pytest.mark.parametrize("line", ["{", "[]", '{"model": "llama"}'])
def test_a_damaged_result_is_named(tmp_path, line):
    path = results.path_of(tmp_path, "5.0.0")
    path.write_text(line + "\n")
    with pytest.raises(TableError, match=r"5\.0\.0\.jsonl:1"):
        results.read(path)
