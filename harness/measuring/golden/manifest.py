"""Manifests of golden checkpoints: keys, shapes and dtypes as published, and the writer of a file.

One JSON file for each architecture in matrix/golden/checkpoints, named as its row:

    {"config": {...}, "generation": {...},
     "tensors": {"model.norm.weight": {"dtype": "BF16", "shape": [64]}, ...}}

`config` is config.json with the fields that the architecture's authors publish, at small sizes, and
`generation` is generation_config.json; `tensors` are the keys of their files. No transformers has a
hand in any of them.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.matrix import GOLDEN
from harness.measuring.golden.generator import encoded, weight
from harness.tables import build

CHECKPOINTS = GOLDEN / "checkpoints"
ALIGNMENT = 8
"""Bytes that the header of a safetensors file is padded to a multiple of."""


@dataclass(frozen=True)
class Stored:
    """A tensor as a file holds it.

    Attributes:
        dtype: in the words of safetensors.
        shape: of the tensor.
    """

    dtype: Literal["F32", "F16", "BF16"]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """A golden checkpoint.

    Attributes:
        config: what config.json says.
        generation: what generation_config.json says: ids that end a text, the second of them one
            that the model generates; a penalty of repetition, the longest text, and a temperature,
            which greedy generation does without.
        tensors: key -> how it is stored.
        seed: another one makes other weights.
    """

    config: dict[str, Any]
    generation: dict[str, Any]
    tensors: dict[str, Stored]
    seed: int = 0


def architectures() -> list[str]:
    """The ids of the rows that have a golden checkpoint."""
    return sorted(path.stem for path in CHECKPOINTS.glob("*.json"))


def read_manifest(architecture: str) -> Manifest:
    """The manifest of an architecture.

    Raises:
        FileNotFoundError: it has none.
        TableError: the file is not as `Manifest` says.
    """
    path = CHECKPOINTS / f"{architecture}.json"
    return build(Manifest, json.loads(path.read_text("utf-8")), f"golden/{path.name}")


def safetensors(architecture: str) -> bytes:
    """The content of the architecture's model.safetensors.

    The format: https://github.com/huggingface/safetensors. Written here, for a library's order of
    tensors and padding may change.
    """
    manifest = read_manifest(architecture)
    name = f"{architecture}/{manifest.seed}"
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for key, stored in manifest.tensors.items():
        begin = len(data)
        data += encoded(weight(name, key, stored.shape), stored.dtype)
        header[key] = {
            "dtype": stored.dtype,
            "shape": stored.shape,
            "data_offsets": [begin, len(data)],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text + data


def write_checkpoint(architecture: str, folder: Path) -> None:
    """Writes the architecture's config.json, generation_config.json and model.safetensors."""
    manifest = read_manifest(architecture)
    files = {"config.json": manifest.config, "generation_config.json": manifest.generation}
    for name, fields in files.items():
        (folder / name).write_text(json.dumps(fields, indent=2), "utf-8")
    (folder / "model.safetensors").write_bytes(safetensors(architecture))


def digest(architecture: str) -> str:
    """SHA-256 of the architecture's model.safetensors, in hexadecimal digits."""
    return hashlib.sha256(safetensors(architecture)).hexdigest()
