"""Measure a transformers and say whether to upgrade to it."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.commands import add_selection
from harness.judging.comparison import EXIT_STATUS
from harness.matrix import load_matrix
from harness.render.comparison import as_text
from harness.upgrading.target import parse_target
from harness.upgrading.upgrade import Check, advice, upgrade
from rabbitllm.releases.index import ask_index

EXAMPLE = """\
  tox -e upgrade-check -- 5.24.0
  tox -e upgrade-check -- dist/transformers-5.25.0.dev0-py3-none-any.whl --arch llama
  tox -e upgrade-check -- ../transformers"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = f"{parser.description}\n{EXIT_STATUS}"
    parser.add_argument("target", help="a release, a wheel, or the folder of a checkout")
    add_selection(parser)


def main(arguments: argparse.Namespace) -> int:
    """Measures, compares, and says it; returns the same status as `diff`.

    Raises:
        OrchestrationError: tox failed, not a cell.
        ValueError: there is no such target, or nothing to compare with.
    """
    listed = [row.version for row in load_matrix().releases]
    known = arguments.target in listed or Path(arguments.target).exists()
    target = parse_target(arguments.target, listed, [] if known else ask_index(pre=True))
    check = Check(
        arguments.results,
        architectures=arguments.arch,
        backends=arguments.attn,
        jobs=arguments.jobs,
    )
    found = upgrade(target, check)
    print(as_text(found))
    print(f"\n{advice(found)}")
    return found.exit_status
