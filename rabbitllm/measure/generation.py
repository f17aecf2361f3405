"""How fast a model generates, stock or streamed, measured the same way."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList


@dataclass(frozen=True)
class Timing:
    """One generation.

    Attributes:
        tokens: the generated ids of the first sequence.
        prefill_seconds: from the call to the first token.
        step_seconds: between tokens.
    """

    tokens: list[int]
    prefill_seconds: float
    step_seconds: list[float]

    def tokens_per_second(self, batch: int = 1) -> float:
        """Of decoding: the prefill is left out."""
        return batch * len(self.step_seconds) / sum(self.step_seconds)


class _Clock(StoppingCriteria):
    """Notes when each token is there; never stops."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        if input_ids.is_cuda:
            torch.cuda.synchronize(input_ids.device)
        self.times.append(time.perf_counter())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def generate(model: Any, prompt: torch.Tensor, new_tokens: int, **options: Any) -> Timing:
    """Greedy generation of exactly `new_tokens` after `prompt` [batch, tokens].

    Args:
        model: any that has transformers' `generate`.
        prompt: token ids, on the model's device; none is padding.
        new_tokens: how many to generate, end of text or not.
        options: further ones of `generate`.
    """
    clock = _Clock()
    begun = time.perf_counter()
    output = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        stopping_criteria=StoppingCriteriaList([clock]),
        **options,
    )
    steps = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    return Timing(output[0, prompt.shape[1] :].tolist(), clock.times[0] - begun, steps)
