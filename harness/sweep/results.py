"""What a sweep found for each model type: JSON lines, one file for each release."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from filelock import FileLock

from harness.records import to_json, write_atomically
from harness.records.failure import Traced
from harness.tables import TableError, build

Outcome = Literal["bit-equal", "no-blocks", "not-buildable", "reference-broken", "fails"]
MEANINGS: dict[Outcome, str] = {
    "bit-equal": "logits and greedy tokens are stock's, bit for bit, and blocks streamed",
    "no-blocks": "the same, but the model has no block that could stream, so it is resident",
    "not-buildable": "the rules make no small model of it",
    "reference-broken": "stock transformers by itself does not give an answer to compare with",
    "fails": "the streamed model raises an error, gives other bits, or did not stream",
}


@dataclass(frozen=True, kw_only=True)
class Measured(Traced):
    """What the process of a model type finds, and why it is not bit-equal.

    Attributes:
        outcome: see `MEANINGS`.
        written_by: the stock class that wrote the checkpoint: of a composite type, the whole's.
        model_class: the stock class that reads it.
        attention: the backend that both sides ran.
        parameters: how many the small model has.
        blocks: decoder layers, by the definition of `harness.measuring.contract.blocks`.
        streamed: how many of them stream.
        embedding_streams: the embedding's weights are in memory only while it runs.
        head_streams: likewise the head's.
        bytes_from_disk: read by the streamed model's forwards.
    """

    outcome: Outcome
    written_by: str = ""
    model_class: str = ""
    attention: str = ""
    parameters: int = 0
    blocks: int = 0
    streamed: int = 0
    embedding_streams: bool = False
    head_streams: bool = False
    bytes_from_disk: int = 0


@dataclass(frozen=True, kw_only=True)
class Result(Measured):
    """What became of one model type.

    Attributes:
        model_type: as in config.json.
        release: of transformers.
        explained: why it fails, from matrix/sweep.toml.
        seconds: wall time.
        engine_hash: of the engine's code.
        versions: package -> version.
        time: UTC, ISO 8601, when it ended.
    """

    model_type: str
    release: str
    explained: str = ""
    seconds: float = 0.0
    engine_hash: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    time: str = ""


def path_of(folder: Path, release: str) -> Path:
    """The file of a release."""
    return folder / f"transformers-{release}.jsonl"


def read(path: Path) -> list[Result]:
    """The results in a file, none if there is no file.

    Raises:
        TableError: a line is no result; the message names it.
    """
    if not path.exists():
        return []
    results = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            results.append(build(Result, json.loads(line), where))
        except (json.JSONDecodeError, TypeError) as error:
            raise TableError(f"{where}: {error}. Delete that line and sweep again.") from error
    return results


def put(path: Path, results: Iterable[Result]) -> None:
    """Writes results, each in place of the one of its type."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.parent / ".lock"):
        merged = {result.model_type: result for result in [*read(path), *results]}
        lines = [to_json(merged[model_type]) + "\n" for model_type in sorted(merged)]
        write_atomically(path, "".join(lines))
