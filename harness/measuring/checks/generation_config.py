"""Generation does not do what the checkpoint's generation_config.json says.

The golden checkpoint's names two tokens that end a text, a penalty of repetition and the longest
text. One prompt ends by a token, one by its length; the right tokens are committed, and stock is
held to them. `generation_settings` holds the streamed model to stock.
"""

from __future__ import annotations

from typing import Any

import torch

from harness.measuring.checks import Outcome
from harness.measuring.golden.manifest import architectures
from harness.measuring.golden.values import Batch, first_other, read_values
from harness.measuring.subject import Subject, reference_side


def run(subject: Subject) -> Outcome:
    """Has stock generate with no other options than the prompts."""
    if reason := unfit(subject):
        return Outcome("not-run", message=reason)
    values = read_values(subject.cell.architecture.id)
    with reference_side():
        stock = generated(subject.published(values.sha256).reference, values.configured)
    other = first_other(stock, values.configured)
    figures = {"first_other_token": other}
    if other is None:
        return Outcome("pass", figures)
    said = f"stock's generated token {other} is the first other one: {tokens(stock)}, "
    return Outcome("stock-wrong", figures, f"{said}not {tokens(values.configured)}")


def unfit(subject: Subject) -> str:
    """Why the cell has nothing to generate from, or nothing."""
    name = subject.cell.architecture.id
    if name not in architectures():
        return f"{name} has no golden checkpoint"
    if subject.dtype != torch.float32:
        return "rounding to half precision chooses other tokens"
    return ""


@torch.no_grad()
def generated(model: Any, batches: tuple[Batch, ...]) -> list[Batch]:
    """The prompts, and what a model generates behind each, told nothing else."""
    found = []
    for batch in batches:
        ids = torch.tensor(batch.prompts, device=model.device)
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
        found.append(Batch(batch.prompts, tuple(map(tuple, made[:, ids.shape[1] :].tolist()))))
    return found


def tokens(batches: Any) -> str:
    """All generated tokens, in words."""
    return " and ".join(str(list(batch.tokens[0])) for batch in batches)
