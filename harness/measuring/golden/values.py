"""Golden values: what is right for a golden checkpoint, computed once and committed.

One JSON file for each architecture in matrix/golden/values, written by `python -m harness golden`.
Where an independent reference knows the family, it computed them; else a release of transformers
did, and they tell that another one answers differently, not which of the two is right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor

from harness.matrix import GOLDEN
from harness.measuring.golden.generator import token_ids
from harness.measuring.golden.manifest import digest, read_manifest
from harness.tables import build

VALUES = GOLDEN / "values"
REFERENCE = "reference"
"""In `Values.by`."""
TEXT = 20
"""Tokens of the text: past every window and every original context of the checkpoints."""
SHORT = 5
"""Tokens of a prompt that generation takes past them."""
SKIPPED = 7
"""Tokens that the shorter row of a padded batch lacks of the text."""
NEW = 8
"""Tokens generated behind each prompt."""
DIGITS = 7
"""Significant ones of a logit; float32 has no more."""
MARGIN = 1e-3
"""By how much a greedy token must beat the next best, as a fraction of the largest logit."""
DISTINCT = 3
"""Tokens that a generated row must hold: one that repeats itself would show little."""

Forward = Callable[[Tensor], Tensor]
"""From ids [1, S] to logits [1, S, V]."""


@dataclass(frozen=True)
class Batch:
    """Prompts that are generated from together, left-padded.

    Attributes:
        prompts: token ids of each row.
        tokens: the greedy tokens behind each, those that it has alone.
    """

    prompts: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Values:
    """What is right for a golden checkpoint.

    Attributes:
        sha256: of the model.safetensors that they are of.
        by: who computed them: `REFERENCE`, or "transformers" and a release.
        torch: the version that it ran on.
        text: token ids.
        logits: of the text, for each position those of the whole vocabulary.
        batches: greedy generation from padded prompts.
        configured: generation from a prompt alone as generation_config.json says: a short one,
            which ends by a token, and a long one, which ends by its length.
    """

    sha256: str
    by: str
    torch: str
    text: tuple[int, ...]
    logits: tuple[tuple[float, ...], ...]
    batches: tuple[Batch, ...]
    configured: tuple[Batch, ...]


def read_values(architecture: str) -> Values:
    """The values of an architecture.

    Raises:
        FileNotFoundError: it has none.
        TableError: the file is not as `Values` says.
    """
    path = VALUES / f"{architecture}.json"
    return build(Values, json.loads(path.read_text("utf-8")), f"golden/{path.name}")


def written(values: Values) -> str:
    """The text of an architecture's file: a line for each position and each row."""
    lines: dict[str, list[str]] = {
        "logits": [json.dumps(row) for row in values.logits],
        "batches": [json.dumps(asdict(batch)) for batch in values.batches],
        "configured": [json.dumps(asdict(batch)) for batch in values.configured],
    }
    fields = [
        f"{json.dumps(name)}: "
        + ("[\n  " + ",\n  ".join(lines[name]) + "\n ]" if name in lines else json.dumps(value))
        for name, value in asdict(values).items()
    ]
    return "{\n " + ",\n ".join(fields) + "\n}\n"


def compute(architecture: str, forward: Forward, by: str) -> Values:
    """The values of an architecture, by a forward without cache and padding.

    Raises:
        ValueError: they would be no good test, see `greedy`.
    """
    manifest = read_manifest(architecture)
    config = manifest.config
    words = config.get("text_config", config)["vocab_size"]
    text = token_ids(f"{architecture}/{manifest.seed}/text", TEXT, 3, words)
    ends = manifest.generation["eos_token_id"]
    try:
        rows = [text, text[SKIPPED:]]
        new = tuple(tuple(greedy(forward, row, ends)) for row in rows)
        padded = Batch(tuple(map(tuple, rows)), new)
        configured = [
            Batch((tuple(prompt),), (tuple(as_configured(forward, prompt, manifest.generation)),))
            for prompt in (text[:SHORT], text)
        ]
    except ValueError as error:
        raise ValueError(f"{architecture}: {error}; its manifest needs another seed") from error
    logits = forward(torch.tensor([text]))[0]
    return Values(
        sha256=digest(architecture),
        by=by,
        torch=torch.__version__,
        text=tuple(text),
        logits=tuple(tuple(float(f"{x:.{DIGITS}g}") for x in row) for row in logits.tolist()),
        batches=(padded,),
        configured=tuple(configured),
    )


def greedy(forward: Forward, prompt: Sequence[int], ends: Sequence[int]) -> list[int]:
    """The `NEW` greedy tokens behind a prompt, each from a forward of the whole text.

    Args:
        forward: of the model.
        prompt: token ids.
        ends: ids that end a text.

    Raises:
        ValueError: a token is hardly better than the next, ends the text, or the tokens repeat
            themselves.
    """
    ids = list(prompt)
    for _ in range(NEW):
        ids.append(best(forward(torch.tensor([ids]))[0, -1]))
    new = ids[len(prompt) :]
    if set(new) & set(ends):
        raise ValueError("a greedy token ends the text")
    if len(set(new)) < DISTINCT:
        raise ValueError(f"the greedy tokens are few: {new}")
    return new


def as_configured(
    forward: Forward, prompt: Sequence[int], generation: Mapping[str, Any]
) -> list[int]:
    """The greedy tokens behind a prompt, as generation_config.json says.

    Repetition is penalised as in https://arxiv.org/abs/1909.05858, section 4.1: the logit of a
    token that the text holds is divided by the penalty, or multiplied if it is negative.

    Args:
        forward: of the model.
        prompt: token ids.
        generation: the file's fields.

    Raises:
        ValueError: a token is hardly better than the next.
    """
    ids, penalty = list(prompt), generation["repetition_penalty"]
    while len(ids) < generation["max_length"]:
        logits = forward(torch.tensor([ids]))[0, -1].clone()
        held = torch.tensor(sorted(set(ids)))
        logits[held] = torch.where(logits[held] < 0, logits[held] * penalty, logits[held] / penalty)
        ids.append(best(logits))
        if ids[-1] in generation["eos_token_id"]:
            break
    return ids[len(prompt) :]


def best(logits: Tensor) -> int:
    """The token with the largest of the logits [vocabulary].

    Raises:
        ValueError: it is hardly better than the next.
    """
    first, second = logits.topk(2).values
    if first - second < MARGIN * logits.abs().max():
        raise ValueError("a greedy token is hardly better than the next")
    return int(logits.argmax())


def first_other(ours: Sequence[Batch], due: Sequence[Batch]) -> int | None:
    """The number, from 1, of the first token that is another one in any row; None if all agree."""
    rows = zip(chain(*(b.tokens for b in ours)), chain(*(b.tokens for b in due)), strict=True)
    numbers = [
        number
        for ours_row, due_row in rows
        for number, (a, b) in enumerate(zip_longest(ours_row, due_row), start=1)
        if a != b
    ]
    return min(numbers, default=None)
