from __future__ import annotations

import pytest

from harness.render.upstream import render
from harness.upstream.results import Result, Test, counted


def made(model, budget, *tests, release="5.10.0", apart=2):
    return Result(
        model=model,
        budget=budget,
        release=release,
        source=release,
        counts=counted(tests),
        named=tuple(test for test in tests if test.outcome != "passed"),
        apart=apart,
    )


def of(name, outcome, **found):
    return Test(name=f"AModelTest::{name}", outcome=outcome, **found)


REFUSED = of("test_r", "refused", failure="TypeError: no", explained="by | design")
RESULTS = [
    made("phi3", "min", of("test_a", "passed"), REFUSED),
    made("llama", "half", of("test_a", "passed"), of("test_b", "failed", failure="KeyError: 'a'")),
    made("llama", "min", REFUSED, of("test_s", "stock-fails", failure="OSError: no hub")),
    made("llama", "min", of("test_old", "failed"), release="5.9.0"),
]


@pytest.fixture
def page(tmp_path):
    return render(RESULTS, tmp_path).read_text("utf-8")


def test_models_are_counted_at_each_budget_and_summed(page):
    lines = [line for line in page.splitlines() if line.startswith(("| llama", "| phi3", "| all"))]
    assert lines == [
        "| llama | min | 0 | 0 | 1 | 0 | 1 | 0 | 0 | 0 | 2 |",
        "| llama | half | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 2 |",
        "| phi3 | min | 1 | 0 | 1 | 0 | 0 | 0 | 0 | 0 | 2 |",
        "| all | min | 1 | 0 | 2 | 0 | 1 | 0 | 0 | 0 | 4 |",
        "| all | half | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 2 |",
    ]


def test_what_failed_and_what_is_refused_stand_with_their_reasons(page):
    assert "| test_b | llama | KeyError: 'a' |" in page
    assert "| test_r | llama, phi3 | by \\| design |" in page
    assert "| test_s | llama | OSError: no hub |" in page


def test_only_the_newest_release_is_shown(page):
    assert "test_old" not in page
    assert "transformers\n5.10.0" in page
