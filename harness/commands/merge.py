"""The records of several machines, brought together."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.records.merge import merge, write

HELP = "bring the records of shards together"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the folders."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = (
        "example:\n"
        "  tox -e matrix -- --shard 1/2 --reports shard1      (on one machine)\n"
        "  tox -e matrix -- --shard 2/2 --reports shard2      (on another)\n"
        "  python -m harness merge shard1/results shard2/results --into reports/results\n\n"
        "Of a cell that several folders have, the newest record is taken, and said so. Records\n"
        "that --into already has of other cells stay."
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="FOLDER", help="records of a shard"
    )
    parser.add_argument("--into", required=True, type=Path, metavar="FOLDER", help="where they go")


def run(args: argparse.Namespace) -> int:
    """Merge, and say what came of it.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a folder holds no records.
    """
    merged = merge(args.folders)
    write(merged.records, args.into)
    for cell in merged.duplicates:
        print(f"{cell}: several records, the newest was taken")
    print(f"{len(merged.records)} records of {len(args.folders)} folders into {args.into}")
    return 0
