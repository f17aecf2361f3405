"""A search with beams does not find what the same search by plain forwards finds.

The harness's own search reads each whole text anew, without a cache; sequences count as
alike if they are as probable.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from harness.measuring.checks import Outcome
from harness.measuring.checks.invariance import Pair, held
from harness.measuring.subject import PROMPT, Subject, reference_side

BEAMS = 3
LENGTH = 6
"""Tokens generated."""


def run(subject: Subject) -> Outcome:
    """Compares the probabilities of all that is found."""
    ends = subject.streamed.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [end for end in (ends,) if end is not None]
    stock = subject.reference
    with reference_side():
        due = search(stock, subject.prompt, ends)

    @torch.no_grad()
    def ask(model: Any) -> Iterator[Pair]:
        found = model.generate(
            input_ids=subject.prompt,
            attention_mask=torch.ones_like(subject.prompt),
            num_beams=BEAMS,
            num_return_sequences=BEAMS,
            do_sample=False,
            min_new_tokens=LENGTH,
            max_new_tokens=LENGTH,
            pad_token_id=0,
        )
        words = f"log probabilities of {found[0, PROMPT:].tolist()} and others instead of "
        words += f"{due[0, PROMPT:].tolist()}"
        yield Pair(words, score(stock, found), score(stock, due))

    return held(subject, ask)


@torch.no_grad()
def search(model: Any, prompt: Tensor, ends: list[int]) -> Tensor:
    """The `BEAMS` texts that are kept at each step, [BEAMS, PROMPT + LENGTH], the best first.

    https://arxiv.org/abs/1409.3215, section 3.2.

    Args:
        model: gives logits for whole texts.
        prompt: token ids [1, PROMPT].
        ends: tokens that are never chosen, as all texts get the same length.
    """
    texts, scores = prompt, torch.zeros(1, device=prompt.device)
    for _ in range(LENGTH):
        logits = model(texts, use_cache=False).logits[:, -1]
        total = scores[:, None] + logits.float().log_softmax(-1)
        total[:, ends] = -torch.inf
        scores, places = total.flatten().topk(BEAMS)
        beam, token = places // total.shape[1], places % total.shape[1]
        texts = torch.cat((texts[beam], token[:, None]), dim=1)
    return texts


def score(model: Any, text: Tensor) -> Tensor:
    """The log probabilities of the generated tokens of texts [N, PROMPT + LENGTH], [N]."""
    logits = model(text, use_cache=False).logits[:, PROMPT - 1 : -1].float().log_softmax(-1)
    total: Tensor = logits.gather(-1, text[:, PROMPT:, None]).sum((1, 2))
    return total
