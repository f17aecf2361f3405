"""What a checkpoint gave in the first good release: kept in a file that is committed beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VERSION = 1
KEPT = ("backend", "input", "watched", "logits", "tokens", "ids", "chat", "backends")
"""Of the answer of `rabbitllm.releases.probe`, what later releases are compared with."""
HEAD = 2**20
"""Bytes of a file of weights that count for the digest, besides its size."""


@dataclass(frozen=True)
class Golden:
    """What is right for a checkpoint.

    Attributes:
        release: of transformers, that gave it.
        recipe: what has to be the same for a comparison: checkpoint (digest), dtype, shrunk.
        values: see `KEPT`.
    """

    release: str
    recipe: Mapping[str, Any]
    values: Mapping[str, Any]


def make(release: str, recipe: Mapping[str, Any], answer: Mapping[str, Any]) -> Golden:
    """What a release gave, as what is right."""
    return Golden(release, recipe, {name: answer[name] for name in KEPT if name in answer})


def write(golden: Golden, path: Path) -> None:
    """Writes the file; what was there is replaced at once, or stays."""
    contents = {"version": VERSION, **vars(golden)}
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(contents, ensure_ascii=False, indent=1) + "\n", "utf-8")
    new.replace(path)


def read(path: Path, recipe: Mapping[str, Any]) -> Golden | None:
    """What the file holds; None if there is none.

    Raises:
        ValueError: it is no such file, or of another checkpoint or recipe; the message says how to
            go on.
    """
    if not path.exists():
        return None
    again = "To begin anew, delete it or name another by --golden."
    try:
        contents = json.loads(path.read_text("utf-8"))
        version, golden = contents.pop("version"), Golden(**contents)
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"{path} holds no golden values: {error}. {again}") from error
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}, not {VERSION}. {again}")
    for name, value in recipe.items():
        if golden.recipe.get(name) != value:
            raise ValueError(
                f"{path} is of another {name}: {golden.recipe.get(name)}, not {value}. {again}"
            )
    return golden


def digest(folder: Path, weights: bool) -> str:
    """16 hexadecimal digits that tell checkpoints apart: of the config, and of files of weights.

    Args:
        folder: of the checkpoint.
        weights: whether its weights count. Of each file the name, the size and the first MiB do.
    """
    total = hashlib.sha256((folder / "config.json").read_bytes())
    for file in _weight_files(folder) if weights else ():
        total.update(f"\0{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            total.update(opened.read(HEAD))
    return total.hexdigest()[:16]


def _weight_files(folder: Path) -> list[Path]:
    return sorted(file for kind in ("safetensors", "bin") for file in folder.glob(f"*.{kind}"))
