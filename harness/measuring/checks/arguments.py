"""An argument of the model's forward is not heeded.

A cache comes where it is asked for, or where nothing is said; labels give the loss of the same
logits; embedded tokens are read as their ids are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from harness.measuring import caches
from harness.measuring.checks import Outcome
from harness.measuring.checks.invariance import Pair, held
from harness.measuring.subject import Subject


def run(subject: Subject) -> Outcome:
    """Compares with what one forward of the same tokens gives."""
    ids = subject.tokens

    @torch.no_grad()
    def ask(model: Any) -> Iterator[Pair]:
        every = subject.alone(model)
        embedded, given = embedding_and_cache(model, ids)
        asked, refused = (model(ids, use_cache=use) for use in (True, False))
        for words, output, tokens in (
            ("where nothing is said", given, ids.shape[1]),
            ("with use_cache=True", asked, ids.shape[1]),
            ("with use_cache=False", refused, 0),
        ):
            yield Pair(f"tokens in the cache {words}", held_by(output), torch.tensor([tokens]))
        loss = model(ids, labels=ids, use_cache=False).loss
        due = torch.nn.functional.cross_entropy(every[0, :-1].float(), ids[0, 1:])
        yield Pair("the loss of labels", torch.zeros(0) if loss is None else loss, due)
        found = model(inputs_embeds=embedded, use_cache=False).logits
        yield Pair("logits of inputs_embeds", found, every)

    return held(subject, ask)


def embedding_and_cache(model: Any, ids: Tensor) -> tuple[Tensor, Any]:
    """What the embedding gives for ids, and the answer of a forward that is told nothing else."""
    seen: list[Tensor] = []
    handle = model.get_input_embeddings().register_forward_hook(
        lambda _module, _args, output: seen.append(output.clone())
    )
    try:
        output = model(ids)
    finally:
        handle.remove()
    return seen[0], output


def held_by(output: Any) -> Tensor:
    """How many tokens the cache of an answer holds, [1]."""
    cache = caches.taken(output)
    return torch.tensor([0 if cache is None else int(cache.get_seq_length())])
