"""What a sweep found for each model type: JSON lines, one file for each release."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from harness.records.failure import Traced
from harness.records.lines import Lines
from harness.records.lines import path_of as path_of

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


RESULTS = Lines(Result, lambda result: result.model_type, "sweep again")
read, put = RESULTS.read, RESULTS.put
