"""List the newest patch of each transformers 5.x release in matrix/releases.toml.

exit status: 0 if the file is up to date now, 1 if --check found that it is not, 2 if the index
could not be asked
"""

from __future__ import annotations

import argparse

from harness.matrix import MATRIX
from harness.records import write_atomically
from harness.upgrading.releases import changes, newest_patches, updated
from rabbitllm.releases.index import ask_index

EXAMPLE = "  tox -e releases -- --check"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--check", action="store_true", help="only say whether the file is up to date"
    )
    parser.add_argument("--pre", action="store_true", help="pre-releases count too")


def main(arguments: argparse.Namespace) -> int:
    """Asks the index, and prints what changed.

    Raises:
        ValueError: the index could not be asked, or its answer lacks what the file has.
    """
    path = MATRIX / "releases.toml"
    before = path.read_text("utf-8")
    after = updated(before, newest_patches(ask_index(arguments.pre)))
    found = changes(before, after)
    for line in found:
        print(line)
    if not found:
        print("matrix/releases.toml is up to date")
    elif arguments.check:
        print("matrix/releases.toml is out of date. Run: tox -e releases")
        return 1
    else:
        write_atomically(path, after)
    return 0
