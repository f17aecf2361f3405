"""Generation does not do what the checkpoint's generation_config.json says.

The golden checkpoint's names two tokens that end a text, a penalty of repetition and the longest
text. One prompt ends by a token, one by its length; the right tokens are committed.
"""

from __future__ import annotations

from typing import Any

import torch

from harness.measuring.checks import Outcome
from harness.measuring.golden.manifest import architectures
from harness.measuring.golden.values import Batch, first_other, read_values
from harness.measuring.subject import Subject, reference_side


def run(subject: Subject) -> Outcome:
    """Generates with no other options than the prompts."""
    name = subject.cell.architecture.id
    if name not in architectures():
        return Outcome("not-run", message=f"{name} has no golden checkpoint")
    if subject.dtype != torch.float32:
        return Outcome("not-run", message="rounding to half precision chooses other tokens")
    values = read_values(name)
    published = subject.published(values.sha256)
    with reference_side():
        stock = [generated(published.reference, batch) for batch in values.configured]
    ours = [generated(published.streamed, batch) for batch in values.configured]
    other, unlike_stock = first_other(stock, values.configured), first_other(ours, stock)
    figures = {"first_other_token": other, "first_divergent_token": unlike_stock}
    if unlike_stock is not None:
        said = f"the streamed model's generated token {unlike_stock} is the first other one"
        return Outcome("fail", figures, said)
    if other is not None:
        said = f"stock's generated token {other} is the first other one: {tokens(stock)}, "
        return Outcome("stock-wrong", figures, f"{said}not {tokens(values.configured)}")
    return Outcome("pass", figures)


@torch.no_grad()
def generated(model: Any, batch: Batch) -> Batch:
    """A prompt, and what a model generates behind it, told nothing else."""
    ids = torch.tensor(batch.prompts, device=model.device)
    made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    return Batch(batch.prompts, tuple(map(tuple, made[:, ids.shape[1] :].tolist())))


def tokens(batches: Any) -> str:
    """All generated tokens, in words."""
    return " and ".join(str(list(batch.tokens[0])) for batch in batches)
