"""Answers are not the golden ones.

The checkpoint has the published layout and the same bits everywhere. Stock's answers to it are held
to the committed values (matrix/golden/values): logits of a text, and tokens generated with a cache
from padded prompts; `generation_config` generates from prompts alone. Asked again, it must answer
the same. Where an independent reference computed the values, a release that differs is wrong; where
another release did, it has changed. The streamed model's logits are held to stock's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.measuring.checks import Outcome
from harness.measuring.golden.manifest import architectures
from harness.measuring.golden.values import REFERENCE, Batch, Values, first_other, read_values
from harness.measuring.parity import compare
from harness.measuring.subject import Subject, left_padded, reference_side

ROUNDING = 2e-5
"""The largest difference that counts as rounding on a CPU, as a fraction of the largest logit.

Backends, releases and references differ by up to 3e-6.
"""
HALF_ROUNDING = 0.05
"""The same for half of the text's positions in bfloat16: 0.033 in the farthest, a Gemma 3.

A single position may be further off, where it rounds into another expert.
"""


@dataclass(frozen=True)
class Distance:
    """How far answers are from what they should be.

    Attributes:
        relative: the largest difference of a logit, as a fraction of the largest.
        positions: positions of the text where one is more than rounding.
        first_other_token: the number of the first generated token that is another one, from 1.
    """

    relative: float
    positions: int
    first_other_token: int | None = None

    @property
    def beyond_rounding(self) -> bool:
        """Whether the answers are other ones."""
        return self.positions > 0 or self.first_other_token is not None

    def __str__(self) -> str:
        """In words."""
        found = []
        if self.positions:
            found.append(
                f"{self.positions} positions are off by up to {self.relative:.2g} of the largest "
                "logit"
            )
        if self.first_other_token is not None:
            found.append(f"generated token {self.first_other_token} is the first other one")
        return ", ".join(found)


def run(subject: Subject) -> Outcome:
    """Loads the golden checkpoint both ways, reads the text, and has stock generate."""
    name = subject.cell.architecture.id
    if name not in architectures():
        return Outcome("not-run", message=f"{name} has no golden checkpoint")
    values = read_values(name)
    published = subject.published(values.sha256)
    with reference_side():
        logits = read(published, published.reference, values)
        again = read(published, published.reference, values)
        released = distance(logits, torch.tensor(values.logits), subject)
        if subject.dtype == torch.float32:  # rounding to half of that chooses other tokens
            batches = [generated(published, batch) for batch in values.batches]
            released = replace(released, first_other_token=first_other(batches, values.batches))
    figures: dict[str, Any] = {"by": values.by} | asdict(released)
    repeated = compare(again, logits)
    if not subject.equal(repeated):
        said = f"stock answers otherwise when asked again, by {repeated['relative']:.2g}"
        return Outcome("reference-broken", figures, said)
    streamed = compare(read(published, published.streamed, values), logits)
    figures |= {f"streamed_{figure}": found for figure, found in streamed.items()}
    if not subject.equal(streamed):
        said = f"the streamed model's are not stock's: largest difference {streamed['max_abs']:.3g}"
        return Outcome("fail", figures, said)
    if not released.beyond_rounding:
        return Outcome("pass", figures)
    if values.by == REFERENCE:
        return Outcome("stock-wrong", figures, f"stock's are not the reference's: {released}")
    return Outcome("stock-changed", figures, f"stock's are not those of {values.by}: {released}")


@torch.no_grad()
def read(subject: Subject, model: Any, values: Values) -> Tensor:
    """A model's logits of the text, [text, vocabulary], on CPU."""
    text = torch.tensor([values.text], device=subject.device)
    logits: Tensor = model(text, use_cache=False).logits[0].cpu()
    return logits


def generated(subject: Subject, due: Batch) -> Batch:
    """The prompts, and what stock generates behind them, left-padded and with a cache."""
    inputs = left_padded([torch.tensor(row, device=subject.device) for row in due.prompts])
    length = len(due.tokens[0])
    made = subject.generate(subject.reference, length, inputs).sequences[:, -length:]
    return Batch(due.prompts, tuple(map(tuple, made.tolist())))


def distance(logits: Tensor, due: Tensor, subject: Subject) -> Distance:
    """How far logits are from others.

    Args:
        logits: [text, vocabulary].
        due: the right ones, in float32.
        subject: whose dtype and kernels say what rounding makes.
    """
    off = (logits.float() - due).abs().amax(-1) / due.abs().max()
    if subject.dtype == torch.float32:
        within = off <= max(ROUNDING, subject.tolerance)  # which a NaN is not
    else:
        within = (off <= HALF_ROUNDING) | (off.median() <= HALF_ROUNDING)
    return Distance(off.max().item(), int((~within).sum()))
