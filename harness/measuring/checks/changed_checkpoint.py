"""A layer store is used although its checkpoint has changed.

Loaded once, in another number format so that a store is made in any case; then its weights change
under the same path, as when a newer revision is downloaded, and it is loaded again.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from harness.measuring.checks import Outcome, verdict
from harness.measuring.parity import close
from harness.measuring.subject import Subject, reference_side
from harness.measuring.weights import load_weights, save_weights, weight_files


def run(subject: Subject) -> Outcome:
    """Loads a copy of the checkpoint before and after the change."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        shutil.copytree(subject.folder, folder)
        options = {"dtype": "bfloat16", "layer_shards_saving_path": Path(scratch) / "stores"}
        before = subject.uncached(subject.stream(folder, **options))
        change(folder)
        with reference_side():
            due = subject.uncached(subject.stock(folder, "bfloat16"))
        ours = subject.uncached(subject.stream(folder, **options))
    if close(due, before, 0.0):
        return Outcome("reference-broken", {}, "the change of the weights changes no answer")
    old = close(ours, before, 0.0)
    said = "answers are still the old ones" if old else "answers are neither old nor new"
    return verdict(close(ours, due, subject.tolerance), {}, said)


def change(folder: Path) -> None:
    """Turns every matrix of the checkpoint upside down; names and shapes stay."""
    for path in weight_files(folder):
        tensors = load_weights(path)
        changed = {
            name: t.flip(0).contiguous() if t.dim() > 1 else t for name, t in tensors.items()
        }
        save_weights(changed, path)
