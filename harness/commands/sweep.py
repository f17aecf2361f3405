"""Stream every causal model type of the installed transformers, and compare it with stock.

exit status: 0 if nothing fails but what matrix/sweep.toml explains, 1 if something does, 2 if the
command is wrong
"""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter
from pathlib import Path

from harness.commands import names
from harness.matrix import ROOT
from harness.running.cell import TIME_LIMIT

EXAMPLE = "  tox -e sweep -- --types bloom,jamba"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--types", type=names, metavar="LIST", help="model types (default: all)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=os.cpu_count(),
        metavar="N",
        help="types at a time (default: %(default)s)",
    )
    parser.add_argument(
        "--time-limit",
        type=float,
        default=TIME_LIMIT,
        metavar="SECONDS",
        help="for each type (default: %(default)g)",
    )
    parser.add_argument(
        "--reports",
        type=Path,
        default=ROOT / "reports",
        metavar="FOLDER",
        help="where sweep.md goes, and the results, into its folder sweep (default: reports)",
    )
    parser.add_argument("--render", action="store_true", help="only render the report again")


def main(arguments: argparse.Namespace) -> int:
    """Sweeps, records, renders, and says what fails.

    Raises:
        ValueError: a model type is unknown, or the rules are wrong; the message says which.
    """
    from harness.render import sweep as report

    folder = arguments.reports / "sweep"
    problems = [] if arguments.render else sweep_types(arguments, folder)
    print(report.render(report.read_all(folder), arguments.reports))
    for problem in problems:
        print(f"NOT AS EXPECTED  {problem}")
    return 1 if problems else 0


def sweep_types(arguments: argparse.Namespace, folder: Path) -> list[str]:
    """Sweeps and records each type as it is done; returns a line for each that is unexpected."""
    from harness.sweep import results  # torch and transformers come with these
    from harness.sweep.rules import load_rules
    from harness.sweep.run import causal_types, sweep

    started = time.monotonic()
    types, rules = causal_types(arguments.types), load_rules()
    found: Counter[str] = Counter()
    known = {name for row in rules.known for name in row.names}
    problems = []
    for number, result in enumerate(
        sweep(types, rules, arguments.jobs, arguments.time_limit), start=1
    ):
        results.put(results.path_of(folder, result.release), [result])
        found[result.outcome] += 1
        line = f"{result.model_type}: {result.outcome} {result.exception} {result.message}".strip()
        print(f"[{number}/{len(types)}] {' '.join(line.split())[:160]}", flush=True)
        if result.outcome == "fails" and not result.explained:
            problems.append(f"{line} ({result.fingerprint})")
        elif result.outcome != "fails" and result.model_type in known:
            problems.append(f"{line}: matrix/sweep.toml lists it as known to fail; remove the row")
    summary = ", ".join(f"{count} {outcome}" for outcome, count in found.most_common())
    print(f"{len(types)} types in {time.monotonic() - started:.0f} s: {summary}")
    return problems
