"""An argument of generate is not heeded.

What the harness makes of a step's logits by temperature, top_k, top_p and the fewest tokens is what
is chosen from. Generation ends where a criterion says so, a streamer gets its tokens, a row that
has ended is padded, and the same seed has both sides choose the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from harness.measuring.checks import Outcome
from harness.measuring.checks.invariance import Pair, held
from harness.measuring.subject import PROMPT, Subject

TEMPERATURE, TOP_K, TOP_P = 0.6, 24, 0.85
MOST, STOPPED = 4, 2
"""Tokens that may be generated, and that are before the criterion says stop."""
PAD = 5


class Listener:
    """A streamer: keeps the tokens that it gets, the prompt's first."""

    def __init__(self) -> None:
        self.tokens: list[int] = []

    def put(self, value: Tensor) -> None:
        """Takes tokens [1, S] or [1]."""
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        """There is nothing to finish."""


def run(subject: Subject) -> Outcome:
    """Has each sample a few tokens, and read two rows of which one ends at once."""
    if subject.dtype != torch.float32:
        return Outcome("not-run", message="rounding to half precision makes tokens equally likely")
    chosen: list[list[int]] = []

    @torch.no_grad()
    def ask(model: Any) -> Iterator[Pair]:
        best = int(subject.alone(model)[0, PROMPT - 1].argmax())
        listener = Listener()
        torch.manual_seed(0)
        found = sampled(subject, model, best, listener)
        chosen.append(found.sequences[0].tolist())
        due = candidates(found.logits[0], best)
        yield Pair("probabilities of sampling", found.scores[0].float().softmax(-1), due)
        new = torch.tensor([found.sequences.shape[1] - PROMPT])
        yield Pair("tokens until a criterion", new, torch.tensor([STOPPED]))
        heard = torch.tensor(listener.tokens, dtype=torch.double)
        yield Pair("what a streamer hears", heard, torch.tensor(chosen[-1]))
        row = ended(subject, model, best)
        due = torch.tensor([best, *[PAD] * (len(row) - 1)], dtype=torch.double)
        yield Pair(f"a row that ends with {best}", row, due)

    outcome = held(subject, ask)
    other = [tokens for tokens in chosen if tokens != chosen[0]]
    if outcome.status == "pass" and other and subject.tolerance == 0:
        said = f"the same seed gives {other[0][PROMPT:]}, on stock {chosen[0][PROMPT:]}"
        return Outcome("fail", outcome.figures, said)
    return outcome


def sampled(subject: Subject, model: Any, end: int, listener: Listener) -> Any:
    """Stock's output of sampling that a criterion stops; `end` may not come before that."""

    def stop(ids: Tensor, _scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(ids),), ids.shape[1] >= PROMPT + STOPPED, device=ids.device)

    return model.generate(
        input_ids=subject.prompt,
        attention_mask=torch.ones_like(subject.prompt),
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=TOP_K,
        top_p=TOP_P,
        min_new_tokens=STOPPED,
        max_new_tokens=MOST,
        eos_token_id=end,
        pad_token_id=PAD,
        stopping_criteria=[stop],
        streamer=listener,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
    )


def candidates(logits: Tensor, end: int) -> Tensor:
    """The probabilities [1, V] of the tokens that are chosen from, by the harness's own rules.

    Args:
        logits: of a step, [1, V].
        end: a token that may not come yet.
    """
    left = logits.double() / TEMPERATURE
    left[:, end] = -torch.inf
    ranked, order = left.softmax(-1).sort(descending=True)
    ranked[:, TOP_K:] = 0
    ranked /= ranked.sum()
    ranked[ranked.cumsum(-1) - ranked >= TOP_P] = 0
    return torch.zeros_like(left).scatter(-1, order, ranked / ranked.sum())


def ended(subject: Subject, model: Any, end: int) -> Tensor:
    """What is generated in a row whose first token ends it, beside another one that goes on."""
    ids = torch.cat((subject.prompt, subject.tokens[:, 1 : PROMPT + 1]))
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=MOST,
        eos_token_id=end,
        pad_token_id=PAD,
    )
    row: Tensor = made[0, PROMPT:].double().cpu()
    return row
