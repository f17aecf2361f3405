"""Head and embedding are not tied as stock's are, or hold other values.

What the embedding gives and the weight that the head runs with are compared with stock's. Tied ones
that are in memory at the same time are one tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.measuring.checks import Outcome, verdict
from harness.measuring.parity import close
from harness.measuring.references.model import OriginalModel
from harness.measuring.subject import Subject


def run(subject: Subject) -> Outcome:
    """Runs one forward and looks at both on the way."""
    model, stock = subject.streamed, subject.reference
    ours = look(model, subject.prompt)
    if isinstance(stock, OriginalModel):
        theirs = Looked(stock.embed(subject.prompt), stock.head_rows(), stock.tied)
        tolerance = subject.tolerance  # its head may be computed from the checkpoint's
    else:
        theirs, tolerance = look(stock, subject.prompt), 0.0
    tied = theirs.one_tensor is True
    wrong = []
    if not close(ours.embedded, theirs.embedded, tolerance):
        wrong.append("the embedding gives other values than stock's")
    if not close(ours.head, theirs.head, tolerance):
        wrong.append("the head holds other values than stock's")
    if ours.one_tensor is not None and ours.one_tensor is not tied:
        wrong.append(f"they are {_count(ours.one_tensor)}, stock's {_count(tied)}")
    if bool(model.config.get_text_config().tie_word_embeddings) is not tied:
        wrong.append(f"the config says tie_word_embeddings={not tied}")
    figures = {"tied": tied, "bound_together": ours.one_tensor is not None}
    return verdict(not wrong, figures, "; ".join(wrong))


@dataclass(frozen=True)
class Looked:
    """What one forward showed.

    Attributes:
        embedded: what the embedding gave, [1, prompt, hidden]. Its weight is not looked at: an
            engine may bring only the rows that the batch needs.
        head: the head's weight while it ran.
        one_tensor: whether head and embedding were the same memory then; None if they were not both
            whole.
    """

    embedded: Tensor
    head: Tensor
    one_tensor: bool | None


@torch.no_grad()
def look(model: Any, prompt: Tensor) -> Looked:
    """Runs one forward of a model and looks."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    seen: dict[str, Any] = {}

    def after_embedding(_module: nn.Module, _args: object, output: Tensor) -> None:
        seen["embedded"] = output.detach().clone()

    def before_head(module: Any, _args: object) -> None:
        weight, other = module.weight, embedding.weight
        whole = not other.is_meta and not weight.is_meta and other.shape == weight.shape
        seen["one_tensor"] = weight.data_ptr() == other.data_ptr() if whole else None
        seen["head"] = weight.detach().clone()

    handles = [
        embedding.register_forward_hook(after_embedding),
        head.register_forward_pre_hook(before_head),
    ]
    try:
        model(prompt, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return Looked(**seen)


def _count(one: bool) -> str:
    return "one tensor" if one else "two tensors"
