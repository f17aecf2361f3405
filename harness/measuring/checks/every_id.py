"""Tokens of all kinds in one batch of 8 are answered differently from stock.

The first and the last ids of the vocabulary, the special ones, and others over all of it: more than
256 of them in one forward. What the embedding gives is compared for each of them, and the logits at
the ends of the rows, where all that came before counts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.measuring.checks import Outcome, verdict
from harness.measuring.parity import close
from harness.measuring.references.model import OriginalModel
from harness.measuring.subject import Subject, reference_side

ROWS = 8
LENGTH = 34
EDGE = 8
"""Ids at either end of the vocabulary."""
SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id")
SHOWN = 4
"""Ids that are named; more of them say nothing new."""


def run(subject: Subject) -> Outcome:
    """Compares one forward."""
    ids = batch(subject.reference.config.get_text_config()).to(subject.device)
    with reference_side():
        logits, embedded = read(subject.reference, ids)
    ours, rows = read(subject.streamed, ids)
    figures = {"rows": ROWS, "distinct_ids": len(ids.unique()), "largest_id": int(ids.max())}
    off = [number for number in range(ids.numel()) if differs(rows, embedded, number)]
    if off:
        named = sorted({int(ids.flatten()[number]) for number in off})
        words = ", ".join(map(str, named[:SHOWN]))
        more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
        return Outcome("fail", figures, f"the embedding gives other values for id {words}{more}")
    good = close(ours, logits, subject.tolerance)
    return verdict(good, figures, "the embedding is right, the logits are not")


def batch(config: Any) -> Tensor:
    """Token ids [ROWS, LENGTH]: both ends of the vocabulary, special ones, others in between."""
    words, count = config.vocab_size, ROWS * LENGTH
    named = [getattr(config, name, None) for name in SPECIAL]
    special = [i for each in named for i in (each if isinstance(each, list) else [each])]
    edges = [*range(EDGE), *range(words - EDGE, words), *(i for i in special if i is not None)]
    between = torch.linspace(0, words - 1, count - len(edges)).long()
    ids = torch.cat([torch.tensor(edges), between])
    return ids[torch.randperm(count, generator=torch.Generator().manual_seed(2))].view(ROWS, LENGTH)


@torch.no_grad()
def read(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """A model's last logits [ROWS, vocabulary], and what its embedding gave, if it has one."""
    if isinstance(model, OriginalModel):
        logits: Tensor = model(ids, use_cache=False).logits[:, -1]  # type: ignore[index]
        return logits, model.embed(ids)
    seen: list[Tensor] = []
    embedding = model.get_input_embeddings()
    handle = embedding.register_forward_hook(lambda *given: seen.append(given[-1].clone()))
    try:
        logits = model(ids, use_cache=False, logits_to_keep=1).logits[:, -1]
    finally:
        handle.remove()
    return logits, seen[0]


def differs(ours: Tensor, due: Tensor, number: int) -> bool:
    """Whether the values of one token, counted through all rows, are others.

    An independent forward computes in float32, whatever the model does.
    """
    return not torch.equal(ours.flatten(0, 1)[number], due.flatten(0, 1)[number].to(ours.dtype))
