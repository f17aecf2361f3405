"""A prompt in chunks, each onto the cache of those before it, is not answered as in one forward.

So a chat's second turn arrives, and what prompt lookup proposes. Chunks begin inside the window and
the original context, and end behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from harness.measuring import caches
from harness.measuring.checks import Outcome
from harness.measuring.checks.invariance import Pair, held
from harness.measuring.subject import Subject

CHUNKS = ((3, 6, 2, 5), (9, 5, 2))
"""Tokens of each chunk: one that outgrows a window of 8, or several onto a full one."""


def run(subject: Subject) -> Outcome:
    """Compares all logits."""

    def ask(model: Any) -> Iterator[Pair]:
        due = subject.alone(model)
        for sizes in CHUNKS:
            if sizes[0] > original_context(model.config):
                words = ", ".join(map(str, sizes))
                yield Pair(f"chunks of {words} tokens", chunked(model, subject.tokens, sizes), due)

    return held(subject, ask)


@torch.no_grad()
def chunked(model: Any, ids: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """A model's logits [1, S, V] for ids [1, S], read in chunks."""
    cache = DynamicCache(config=model.config)
    onto = caches.given(model, cache)
    pieces = ids.split(sizes, dim=1)
    return torch.cat([model(one, use_cache=True, **onto).logits for one in pieces], 1)


def original_context(config: Any) -> int:
    """Tokens that the first chunk must be longer than; 0 for nearly all models.

    With longrope all of a text longer than the original context has other frequencies than a
    shorter one, so what a cache holds of a shorter beginning does not fit what follows.
    """
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    original = int(rope.get("original_max_position_embeddings", 0))
    return original if rope.get("rope_type") == "longrope" and original < sum(CHUNKS[0]) else 0
