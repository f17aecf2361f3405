"""Bring the records of shards together.

Of a cell that several folders have, the newest record is taken, and said so. Records that --into
already has of other cells stay.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.records.merge import merge, write

EXAMPLE = """\
  tox -e matrix -- --shard 1/2 --reports shard1      (on one machine)
  tox -e matrix -- --shard 2/2 --reports shard2      (on another)
  tox -e harness -- merge shard1/results shard2/results --into reports/results"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="records of a shard"
    )
    parser.add_argument("--into", required=True, type=Path, metavar="FOLDER", help="where they go")


def main(arguments: argparse.Namespace) -> int:
    """Merges, and says what came of it.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a folder holds no records.
    """
    merged = merge(arguments.folders)
    write(merged.records, arguments.into)
    for cell in merged.duplicates:
        print(f"{cell}: several records, the newest was taken")
    print(
        f"{len(merged.records)} records of {len(arguments.folders)} folders into {arguments.into}"
    )
    return 0
