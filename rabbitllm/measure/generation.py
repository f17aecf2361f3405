"""How fast a model generates, stock or streamed, measured the same way."""

import time
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer
from typing_extensions import override


@dataclass(frozen=True)
class Timing:
    """One generation.

    Attributes:
        tokens: the generated ids of the first sequence.
        prefill_seconds: from the call to the first token.
        step_seconds: between arrivals of tokens. One token arrives at a time, or several where a
            step accepts guesses.
        first: tokens that came with the prefill.
    """

    tokens: list[int]
    prefill_seconds: float
    step_seconds: list[float]
    first: int = 1

    def tokens_per_second(self, batch: int = 1) -> float:
        """Of decoding: the prefill is left out, and what came with it."""
        return batch * (len(self.tokens) - self.first) / sum(self.step_seconds)


class _Clock(BaseStreamer):
    """Notes when tokens are there.

    They come as copies on the host, for which `generate` has waited. A device-wide wait would also
    wait for the copies of the next stages, and so leave the link idle between tokens: 4 ms of the
    244 that a token of a 7B model takes (H100, PCIe 5).
    """

    def __init__(self) -> None:
        self.times: list[float] = []
        self.counts: list[int] = []

    @override
    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())
        self.counts.append(value.shape[-1] if value.dim() > 1 else 1)

    @override
    def end(self) -> None:
        """Nothing is left to note."""


def time_generation(model: Any, prompt: torch.Tensor, new_tokens: int, **options: Any) -> Timing:
    """Generation of exactly `new_tokens` after `prompt` [batch, tokens]; greedy, if not asked else.

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
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        streamer=clock,
        **{"do_sample": False} | options,
    )
    prefill, *decoding = clock.times[1:]  # the prompt itself comes first
    steps = [b - a for a, b in pairwise([prefill, *decoding])]
    return Timing(
        output[0, prompt.shape[1] :].tolist(), prefill - begun, steps, first=clock.counts[1]
    )
