"""Measure the newest transformers, pre-releases included, and write what an issue should say.

The first line of the file is the issue's title. Without anything to report there is no file. The
exit status is 0 in any case: a canary blocks nobody.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from packaging.version import Version

from harness.commands import add_selection
from harness.matrix import load_matrix
from harness.records import write_atomically
from harness.render.comparison import as_markdown
from harness.running.environments import OrchestrationError
from harness.upgrading.target import parse_target
from harness.upgrading.upgrade import Check, advice, upgrade
from rabbitllm.releases.index import ask_index

EXAMPLE = "  tox -e canary -- --issue canary.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_selection(parser)
    parser.add_argument(
        "--issue", type=Path, default=Path("canary.md"), metavar="FILE", help="(default: canary.md)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Measures, and writes what is worse, or why nothing could be measured."""
    try:
        text = look(arguments)
    except (ValueError, FileNotFoundError, OrchestrationError) as error:
        text = f"Canary: nothing could be measured\n\n{error}\n"
    arguments.issue.unlink(missing_ok=True)
    if text:
        write_atomically(arguments.issue.resolve(), text)
    print(text or "Nothing to report.")
    return 0


def look(arguments: argparse.Namespace) -> str:
    """The text of an issue about the newest release; empty if all is well.

    Raises:
        OrchestrationError: tox failed, not a cell.
        ValueError: the index was not reached, or there is nothing to compare with.
    """
    listed = [row.version for row in load_matrix().releases]
    on_index = ask_index(pre=True)
    target = parse_target(max(on_index, key=Version), listed, on_index)
    check = Check(
        arguments.results,
        architectures=arguments.arch,
        backends=arguments.attn,
        jobs=arguments.jobs,
    )
    found = upgrade(target, check)
    if found.exit_status in (0, 3):
        return ""
    return f"Canary: {found.summary}\n\n{advice(found)}\n\n{as_markdown(found)}\n"
