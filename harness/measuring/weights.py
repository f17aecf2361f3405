"""A checkpoint's weight files, in the two formats that models are published in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

SUFFIXES = (".safetensors", ".bin")


def weight_files(folder: Path) -> list[Path]:
    """The weight files in a folder, by name."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)


def load_weights(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, by their keys."""
    if file.suffix == ".safetensors":
        return load_file(file)
    tensors: dict[str, Tensor] = torch.load(file, weights_only=True)
    return tensors


def save_weights(tensors: Mapping[str, Tensor], file: Path) -> None:
    """Writes one file, in the format of its name."""
    if file.suffix == ".safetensors":
        save_file(dict(tensors), file, {"format": "pt"})
    else:
        torch.save(dict(tensors), file)
