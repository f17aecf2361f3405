"""Compute golden values again and write them to matrix/golden.

The independent reference of a family computes them where there is one, else stock of the installed
transformers, eager and without a cache; those of tokenizers, the tokenizers library and jinja2.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from harness.commands import names
from harness.matrix import Architecture, load_matrix
from harness.records import write_atomically
from harness.tables import unknown

if TYPE_CHECKING:
    from harness.measuring.golden.values import Forward

EXAMPLE = "  tox -e golden -- --arch gemma2,phi3"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--arch", type=names, metavar="LIST", help="(default: all that have them)")


def main(arguments: argparse.Namespace) -> int:
    """Writes the values, and says who computed which.

    Raises:
        ValueError: an architecture has no golden checkpoint, or its values would be no good test.
    """
    from harness.measuring.golden import manifest, texts, values  # need torch
    from harness.measuring.golden.tokenizers import name_for, read_published

    known = manifest.architectures()
    for name in arguments.arch or ():
        if name not in known:
            raise ValueError(unknown("golden checkpoint", name, known))
    values.VALUES.mkdir(exist_ok=True)
    for row in load_matrix().architectures:
        if row.id in (arguments.arch or known):
            with tempfile.TemporaryDirectory() as folder:
                manifest.write_checkpoint(row.id, Path(folder))
                forward, by = forward_of(row, Path(folder))
                found = values.compute(row.id, forward, by)
            write_atomically(values.VALUES / f"{row.id}.json", values.written(found))
            print(f"{row.id}: by {by}")
    for name in sorted({name for name in map(name_for, arguments.arch or known) if name}):
        write_atomically(texts.path_of(name), texts.written(texts.compute(name)))
        print(f"tokenizer of {', '.join(read_published(name).architectures)}")
    return 0


def forward_of(row: Architecture, folder: Path) -> tuple[Forward, str]:
    """A forward of the row's golden checkpoint, and who computes it."""
    import torch
    import transformers

    from harness.measuring.golden.values import REFERENCE
    from harness.measuring.references.published import FORWARDS, Published

    if row.model_type in FORWARDS:
        return Published(folder), REFERENCE
    stock = getattr(transformers, row.model_class).from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    stock.eval()

    @torch.no_grad()
    def forward(ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = stock(ids, use_cache=False).logits
        return logits

    return forward, f"transformers {transformers.__version__}"
