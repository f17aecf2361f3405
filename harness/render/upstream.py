"""The report of transformers' own tests, rendered from their results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.records import write_atomically
from harness.render.frames import by_version
from harness.render.pages import render as render_page
from harness.render.text import shorten
from harness.upstream.results import BUDGETS, MEANINGS, RED, Result, Test, read

PAGE = "upstream.md"


def read_all(folder: Path) -> list[Result]:
    """The results of all releases in a folder."""
    return [result for path in folder.glob("transformers-*.jsonl") for result in read(path)]


def render(results: Sequence[Result], folder: Path) -> Path:
    """Writes the report into `folder`; returns its path.

    Raises:
        ValueError: there are no results.
    """
    if not results:
        raise ValueError(f"{folder} holds no results of these tests. Make some: tox -e upstream")
    path = folder / PAGE
    write_atomically(path, page(results))
    return path


def page(results: Sequence[Result]) -> str:
    """The report of the newest release's results, of which there is one at least."""
    release = max((result.release for result in results), key=by_version)
    newest = sorted(
        (result for result in results if result.release == release),
        key=lambda result: (result.model, list(BUDGETS).index(result.budget)),
    )
    shown = {
        "release": release,
        "sources": sorted({result.source for result in newest}),
        "header": ["model", "budget", *MEANINGS, "not run"],
        "rows": [counts(result) for result in newest] + totals(newest),
        "meanings": MEANINGS,
        "budgets": BUDGETS,
        "red": listed(newest, RED),
        "refused": listed(newest, ["refused"]),
        "stock": listed(newest, ["stock-fails"]),
    }
    return render_page(PAGE, shown)


def counts(result: Result) -> list[Any]:
    """A row of the table."""
    numbers = [result.counts[outcome] for outcome in MEANINGS]
    return [result.model, result.budget, *numbers, result.apart]


def totals(results: Sequence[Result]) -> list[list[Any]]:
    """The last rows of the table: the sums at each budget."""
    rows = []
    for budget in BUDGETS:
        columns = [counts(result)[2:] for result in results if result.budget == budget]
        if columns:
            rows.append(["all", budget, *map(sum, zip(*columns, strict=True))])
    return rows


def listed(results: Sequence[Result], outcomes: Sequence[str]) -> list[list[str]]:
    """The tests with these outcomes and why, each once, with the models whose tests they are."""
    found: dict[tuple[str, str], list[str]] = {}
    for result in results:
        for test in result.named:
            if test.outcome in outcomes:
                models = found.setdefault((test.name.partition("::")[2], why(test)), [])
                if result.model not in models:
                    models.append(result.model)
    return [[name, ", ".join(models), words] for (name, words), models in sorted(found.items())]


def why(test: Test) -> str:
    """Why a test did not pass."""
    return test.explained or shorten(test.failure) or MEANINGS[test.outcome]
