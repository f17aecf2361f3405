"""May transformers be upgraded?"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.commands import add_selection
from harness.judging.comparison import EXIT_STATUS
from harness.matrix import load_matrix
from harness.upgrading.package_index import ask_index

HELP = "measure a transformers and say whether to upgrade to it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the target, and what is measured."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "examples:\n"
        "  tox -e upgrade-check -- 5.24.0\n"
        "  tox -e upgrade-check -- dist/transformers-5.25.0.dev0-py3-none-any.whl --arch llama\n"
        "  tox -e upgrade-check -- ../transformers\n\n"
        f"{EXIT_STATUS}"
    )
    parser.add_argument("target", help="a release, a wheel, or the folder of a checkout")
    add_selection(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, compare, and say it; return the same status as `diff`.

    Raises:
        OrchestrationError: tox failed, not a cell.
        ValueError: there is no such target, or nothing to compare with.
    """
    # The environments that only run cells need none of these.
    from harness.render.comparison import as_text
    from harness.upgrading.target import parse_target
    from harness.upgrading.upgrade import Check, advice, upgrade

    listed = [row.version for row in load_matrix().releases]
    known = args.target in listed or Path(args.target).exists()
    target = parse_target(args.target, listed, [] if known else ask_index(pre=True))
    check = Check(args.results, architectures=args.arch, backends=args.attn, jobs=args.jobs)
    found = upgrade(target, check)
    print(as_text(found))
    print(f"\n{advice(found)}")
    return found.exit_status
