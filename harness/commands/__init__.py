"""The sub-commands of `python -m harness`, one module each, and the arguments that several take.

A module's docstring is its help. It has `EXAMPLE`, `add_arguments(parser)` and `main(arguments)`,
which returns the exit status. What needs torch is imported inside `main`, for the environment that
plans and renders has none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.matrix import ROOT
from harness.records.provenance import cores


def names(text: str) -> list[str]:
    """The parts of a list joined by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Declares what is measured, and against what."""
    parser.add_argument("--arch", type=names, metavar="LIST", help="(default: all architectures)")
    parser.add_argument(
        "--attn", type=names, default="eager,sdpa", metavar="LIST", help="(default: eager,sdpa)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=ROOT / "reports" / "results",
        metavar="DIR",
        help="records whose newest release is compared with (default: reports/results)",
    )
    parser.add_argument("--jobs", type=int, default=cores(), metavar="N", help="(default: cores)")
