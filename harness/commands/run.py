"""The cells of the installed transformers, measured here and now."""

from __future__ import annotations

import argparse

from harness.matrix import ROOT

HELP = "measure cells with the installed transformers and record them"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what selects cells."""
    parser.add_argument("--arch", help="architectures, separated by commas (default: all)")
    parser.add_argument("--attn", help="attention backends, separated by commas (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--results", metavar="DIR", help="where records go (default: reports/results)"
    )


def run(args: argparse.Namespace) -> int:
    """Run pytest on matrix/test_cells.py; return its exit status."""
    import pytest  # only this command needs it

    options = {"arch": args.arch, "attn": args.attn, "device": args.device, "results": args.results}
    chosen = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return int(pytest.main([str(ROOT / "matrix" / "test_cells.py"), f"--rootdir={ROOT}", *chosen]))
