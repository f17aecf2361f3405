"""The real model's answer to a question differs from stock's, or does not name Paris."""

from __future__ import annotations

from typing import Any

import torch

from harness.measuring.checks import Outcome, verdict
from harness.measuring.parity import first_divergent
from harness.measuring.subject import Subject, reference_side

QUESTION = "What is the capital of France?"
ANSWER = "Paris"
LENGTH = 8
"""Tokens: as many as its sentence has."""


def run(subject: Subject) -> Outcome:
    """Asks both, through the checkpoint's own chat template."""
    tokenizer = subject.streamed.tokenizer
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    ).to(subject.device)
    with reference_side():  # first, so that what both cannot do is not blamed on the streamed one
        stock = answer(subject.reference, prompt)
    ours = answer(subject.streamed, prompt)
    text, theirs = (tokenizer.decode(each, skip_special_tokens=True) for each in (ours, stock))
    figures = {
        "answer": text,
        "tokens": len(ours),
        "first_divergent_token": first_divergent(ours, stock),
    }
    message = f"{text!r}, stock: {theirs!r}"
    if ANSWER not in theirs:
        return Outcome("reference-broken", figures, message)
    good = figures["first_divergent_token"] is None and ANSWER in text
    return verdict(good, figures, message)


@torch.no_grad()
def answer(model: Any, prompt: Any) -> torch.Tensor:
    """The greedily generated tokens after the prompt."""
    tokens: torch.Tensor = model.generate(**prompt, do_sample=False, max_new_tokens=LENGTH)
    return tokens[0, prompt["input_ids"].shape[1] :].cpu()
