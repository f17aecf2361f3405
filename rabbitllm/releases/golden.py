"""What a checkpoint gave in the first good release: kept in a file that is committed beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rabbitllm.checkpoint.durable import write_durably

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
    write_durably(path, json.dumps(contents, ensure_ascii=False, indent=1) + "\n")


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
        if version == VERSION:
            _refuse_other_types(golden)
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


def _refuse_other_types(golden: Golden) -> None:
    """Raises ValueError, which names the value, if one is of no type that the probe gives."""
    kinds = {"release": str, "recipe": dict, "values": dict}
    for name, kind in kinds.items():
        if not isinstance(getattr(golden, name), kind):
            raise ValueError(f"its {name} cannot be such")
    for name, value in golden.values.items():
        if not TYPES.get(name, lambda _: True)(value):
            raise ValueError(f"its {name} cannot be such")
    logits = golden.values.get("logits")
    if logits and not _as_many(logits["values"], golden.values.get("watched")):
        raise ValueError("it has not a logit for each place that is watched")


def _numbers(value: Any) -> bool:
    """Whether it is a list of numbers."""
    return isinstance(value, list) and all(isinstance(v, int | float) for v in value)


def _rows(value: Any) -> bool:
    """Whether it is a list of lists of numbers."""
    return isinstance(value, list) and all(map(_numbers, value))


def _logits(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("digest"), str)
        and isinstance(value.get("largest"), int | float)
        and _rows(value.get("values"))
    )


def _as_many(rows: list[Any], others: Any) -> bool:
    """Whether two lists of lists are as long, each."""
    return isinstance(others, list) and [*map(len, rows)] == [*map(len, others)]


TYPES: Mapping[str, Callable[[Any], bool]] = {
    "backend": lambda value: isinstance(value, str),
    "input": _numbers,
    "watched": _rows,
    "logits": _logits,
    "tokens": _numbers,
    "ids": _rows,
    "chat": lambda value: isinstance(value, str),
    "backends": lambda value: isinstance(value, dict),
}
"""Of `KEPT`: whether a value is of the type that the probe gives."""


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
