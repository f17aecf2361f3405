"""Formats of quantised checkpoints, as they are published: written, and decoded by their formulas.

Neither knows transformers or the engine: what is decoded here is what a stock model is filled with,
on releases that read the format and on those that do not.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from harness.measuring.formats import floats, integers
from harness.measuring.formats.form import Form
from harness.measuring.weights import load_weights, save_weights, weight_files

FORMS: dict[str, Form] = {
    "fp8": floats.FP8,
    "mxfp4": floats.MXFP4,
    "nf4": floats.NF4,
    "awq": integers.AWQ,
    "gptq": integers.GPTQ,
    "compressed-tensors": integers.COMPRESSED_TENSORS,
}
"""By the name that a row of the matrix gives."""
FIELD = "quantization_config"


def encode(name: str, folder: Path) -> None:
    """Quantises a plain checkpoint in place: its tensors, and what config.json says of them.

    Raises:
        ValueError: it holds nothing that the format quantises.
    """
    form, found = FORMS[name], 0
    for file in weight_files(folder):
        tensors: dict[str, Tensor] = {}
        for key, tensor in load_weights(file).items():
            if re.search(form.keys, key):
                stem, found = key.removesuffix(".weight"), found + 1
                tensors |= {stem + suffix: t for suffix, t in form.encode(tensor.float()).items()}
            else:
                tensors[key] = tensor
        save_weights({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
    if not found:
        raise ValueError(f"{folder} holds nothing that {name} quantises")
    change_config(folder, lambda fields: fields | {FIELD: form.settings})


def decode(name: str, quantised: Path, folder: Path) -> None:
    """Writes the plain checkpoint that a quantised one stands for.

    Args:
        name: of the format.
        quantised: a folder that `encode` has filled.
        folder: gets the files.
    """
    form = FORMS[name]
    mark = form.suffixes[0]
    for path in quantised.iterdir():
        if path.suffix == ".json":
            (folder / path.name).write_bytes(path.read_bytes())
    for file in weight_files(quantised):
        tensors = load_weights(file)
        for stem in [key.removesuffix(mark) for key in tensors if key.endswith(mark)]:
            stored = {suffix: tensors.pop(stem + suffix) for suffix in form.suffixes}
            tensors[stem + form.target] = form.decode(stored).contiguous()
        save_weights(tensors, folder / file.name)
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    change_config(folder, lambda fields: {k: v for k, v in fields.items() if k != FIELD})


def change_config(folder: Path, change: Any) -> None:
    """Writes config.json anew, with what `change` makes of its fields."""
    file = folder / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text("utf-8"))), indent=2), "utf-8")
