"""Run transformers' own tests on streamed models: of the families' architectures, at two budgets.

exit status: 0 if nothing fails but what matrix/upstream.toml lists, 1 if something does or if a
listed test passes, 2 if the command is wrong
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from harness.commands import names
from harness.matrix import ROOT
from harness.records.provenance import cores
from harness.tables import unknown

EXAMPLE = "  tox -e upstream -- --models llama,gemma2"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--models",
        type=names,
        metavar="LIST",
        help="folders of transformers' tests/models (default: those of matrix/upstream.toml)",
    )
    parser.add_argument(
        "--budgets", type=names, metavar="LIST", help="min, half, or both (default: both)"
    )
    parser.add_argument(
        "--source",
        type=Path,
        metavar="PLACE",
        help="transformers' source, a folder or an archive of one (default: that of the installed"
        " release is fetched from GitHub)",
    )
    parser.add_argument(
        "--jobs", type=int, default=cores(), metavar="N", help="at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--reports",
        type=Path,
        default=ROOT / "reports",
        metavar="FOLDER",
        help="where upstream.md goes, and the results, into its folder upstream (default: reports)",
    )
    parser.add_argument("--render", action="store_true", help="only render the report again")


def main(arguments: argparse.Namespace) -> int:
    """Runs the tests, records, renders, and says what fails.

    Raises:
        ValueError: a model or a budget is unknown, or the rules are wrong; the message says which.
        FileNotFoundError: there is no source, or it holds no tests.
    """
    from harness.render import upstream as report

    folder = arguments.reports / "upstream"
    problems = [] if arguments.render else run_tests(arguments, folder)
    print(report.render(report.read_all(folder), arguments.reports))
    for problem in problems:
        print(f"NOT AS EXPECTED  {problem}")
    return 1 if problems else 0


def run_tests(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Runs and records each model's tests; returns a line for each that is unexpected."""
    import transformers  # torch comes with these

    from harness.upstream import results
    from harness.upstream.rules import load_rules
    from harness.upstream.run import run_all
    from harness.upstream.source import source

    started = time.monotonic()
    rules, budgets = load_rules(), results.BUDGETS
    wanted = [_known("budget", name, budgets) for name in arguments.budgets or budgets]
    chosen = [budget for budget in budgets if budget in wanted]
    found: Counter[str] = Counter()
    problems = []
    with source(arguments.source, transformers.__version__) as place:
        there = sorted(path.name for path in (place / "tests" / "models").iterdir())
        models = [_known("model", name, there) for name in arguments.models or rules.models]
        for result in run_all(place, models, chosen, rules, arguments.jobs):
            results.put(results.path_of(folder, result.release), [result])
            found.update(result.counts)
            print(f"{result.model} at {result.budget}: {in_words(result.counts)}", flush=True)
            problems += [
                f"{result.model} at {result.budget}, {test.name}: {test.outcome} {test.failure}"
                for test in result.named
                if test.outcome in results.RED
            ]
    print(f"{len(models)} models in {time.monotonic() - started:.0f} s: {in_words(found)}")
    return problems


def in_words(counts: dict[str, int]) -> str:
    """Counts of outcomes, those that occur."""
    return (
        ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count) or "no test"
    )


def _known(kind: str, name: str, available: Collection[str]) -> str:
    if name not in available:
        raise ValueError(unknown(kind, name, available))
    return name
