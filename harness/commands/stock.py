"""Note what releases of transformers are to code on top of them, and what they answer.

Configs, parameters, interfaces, the token ids of texts, the logits of golden checkpoints.

Writes a snapshot for each release into reports/stock. `diff A B` compares two of them, and `docs`
makes the pages that say what changed for models in each release. Answers of two releases are
compared if both were asked the same: what changes golden data or questions asks for all again.

exit status: 0 if every snapshot was taken, 1 if one was not
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from harness.matrix import ROOT, load_matrix
from harness.running.selection import select_releases
from harness.stock import questions
from harness.stock.store import FOLDER, Asked, take, write
from rabbitllm.releases.environments import Environments, default_root

EXTRA = ("gguf>=0.10",)
"""What reads the tokenizers of real models."""
EXAMPLE = "  tox -e harness -- stock --releases newest"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--releases", default="all", metavar="LIST", help="of matrix/releases.toml (default: all)"
    )
    parser.add_argument("--reports", type=Path, default=ROOT / "reports", metavar="DIR")


def main(arguments: argparse.Namespace) -> int:
    """Takes the snapshots, and prints their paths.

    Raises:
        ValueError: a release is none of the matrix, or a real model is not on the index.
    """
    matrix = load_matrix()
    types = sorted({row.model_type for row in matrix.architectures})
    environments = Environments(default_root(), EXTRA)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        digest = questions.write(Path(folder), matrix)
        asked = Asked(Path(folder), digest, questions.real_models(matrix, environments.root))
        for release in select_releases(arguments.releases, matrix):
            begun = time.monotonic()
            try:
                facts = take(release, types, environments, asked)
            except ValueError as error:
                failed += 1
                print(error, file=sys.stderr)
                continue
            path = write(release, facts, arguments.reports / FOLDER)
            print(f"{path}: {len(facts):,} facts, {time.monotonic() - begun:.0f} s", flush=True)
    return int(failed > 0)
