"""The newest transformers, pre-releases included, seen before users meet it."""

from __future__ import annotations

import argparse
from pathlib import Path

from packaging.version import Version

from harness.commands import add_selection
from harness.matrix import load_matrix
from harness.records import write_atomically
from harness.running.environments import OrchestrationError
from harness.upgrading.package_index import ask_index

HELP = "measure the newest transformers, pre-releases included, and write what an issue should say"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured and where the issue's text goes."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "example:\n  tox -e canary -- --issue canary.md\n\n"
        "The first line of the file is the issue's title. Without anything to report there is no\n"
        "file. The exit status is 0 in any case: a canary blocks nobody."
    )
    add_selection(parser)
    parser.add_argument(
        "--issue", type=Path, default=Path("canary.md"), metavar="FILE", help="(default: canary.md)"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, and write what is worse, or why nothing could be measured."""
    try:
        text = look(args)
    except (ValueError, FileNotFoundError, OrchestrationError) as error:
        text = f"Canary: nothing could be measured\n\n{error}\n"
    args.issue.unlink(missing_ok=True)
    if text:
        write_atomically(args.issue.resolve(), text)
    print(text or "Nothing to report.")
    return 0


def look(args: argparse.Namespace) -> str:
    """Return the text of an issue about the newest release; empty if all is well.

    Raises:
        OrchestrationError: tox failed, not a cell.
        ValueError: the index was not reached, or there is nothing to compare with.
    """
    from harness.render.comparison import as_markdown
    from harness.upgrading.target import parse_target
    from harness.upgrading.upgrade import Check, advice, upgrade

    listed = [row.version for row in load_matrix().releases]
    on_index = ask_index(pre=True)
    target = parse_target(max(on_index, key=Version), listed, on_index)
    check = Check(args.results, architectures=args.arch, backends=args.attn, jobs=args.jobs)
    found = upgrade(target, check)
    if found.exit_status in (0, 3):
        return ""
    return f"Canary: {found.summary}\n\n{advice(found)}\n\n{as_markdown(found)}\n"
