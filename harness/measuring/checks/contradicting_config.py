"""A config that contradicts its checkpoint is believed.

The config's head_dim is hidden_size / num_attention_heads, and the checkpoint's matrices are wider:
its shapes are the truth.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

from harness.measuring.checks import Outcome, verdict
from harness.measuring.parity import close
from harness.measuring.subject import Subject


def run(subject: Subject) -> Outcome:
    """Loads a copy with such a config; answers are those of the right one."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "checkpoint"
        shutil.copytree(subject.folder, folder)
        path = folder / "config.json"
        config = json.loads(path.read_text("utf-8"))
        right = config["head_dim"]
        config["head_dim"] = config["hidden_size"] // config["num_attention_heads"]
        path.write_text(json.dumps(config), "utf-8")
        model = subject.stream(folder)
        found = model.config.head_dim
        good = found == right and close(
            subject.uncached(model), subject.stock_uncached, subject.tolerance
        )
    said = f"head_dim is {found}, the checkpoint's is {right}"
    return verdict(good, {"head_dim": found}, said)
