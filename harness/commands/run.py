"""Measure cells with the installed transformers and record them."""

from __future__ import annotations

import argparse

from harness.matrix import ROOT

EXAMPLE = "  python -m harness run --arch llama,qwen2 --attn sdpa"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", help="architectures, separated by commas (default: all)")
    parser.add_argument("--attn", help="attention backends, separated by commas (default: all)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--results", metavar="DIR", help="where records go (default: reports/results)"
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs pytest on matrix/test_cells.py; returns its exit status."""
    import pytest  # only this command needs it

    options = {
        "arch": arguments.arch,
        "attn": arguments.attn,
        "device": arguments.device,
        "results": arguments.results,
    }
    chosen = [f"--{name}={value}" for name, value in options.items() if value is not None]
    return int(pytest.main([str(ROOT / "matrix" / "test_cells.py"), f"--rootdir={ROOT}", *chosen]))
