"""How fast a model reads a prompt and generates after it, beside what the wires allow."""

import statistics
from dataclasses import dataclass
from typing import Any

import torch

from rabbitllm.measure.generation import time_generation
from rabbitllm.measure.limits import Limits

WARM_UP = 2
"""Tokens generated after the prompt before the clock runs: kernels depend on its length."""
MOVED = ("bytes_from_disk", "bytes_to_device")
"""Counters of `streaming_stats`."""


@dataclass(frozen=True)
class Workload:
    """What a model is timed at, as llama-bench has it.

    Attributes:
        prompt_tokens: that it reads, of one sequence.
        new_tokens: that it generates after the prompt.
        repeats: how often.
    """

    prompt_tokens: int
    new_tokens: int
    repeats: int


@dataclass(frozen=True)
class Throughput:
    """One test of one model.

    Attributes:
        test: such as "pp128", a prompt of 128 tokens, or "tg32", 32 tokens after it.
        samples: tokens/s of each repetition.
        gb_per_second: weights that moved in the mean repetition; None if none did.
        limit_tokens_per_second: what the limits allow; None if none of them applies.
        planned_tokens_per_second: what was predicted of the plan; None if nothing was.
    """

    test: str
    samples: list[float]
    gb_per_second: float | None
    limit_tokens_per_second: float | None
    planned_tokens_per_second: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """The mean of the samples."""
        return statistics.mean(self.samples)

    @property
    def deviation(self) -> float:
        """The samples' standard deviation; 0 of a single one."""
        return statistics.stdev(self.samples) if len(self.samples) > 1 else 0.0


def measure_throughput(
    model: Any,
    work: Workload,
    limits: Limits,
    computed_bytes: float,
    planned_seconds: float = 0.0,
) -> list[Throughput]:
    """Both tests of a model, after a warm-up: the prompt, then the tokens after it.

    Args:
        model: a streamed or a stock one.
        work: what it is timed at.
        limits: of the wires that its weights take.
        computed_bytes: of weights that one token is multiplied with.
        planned_seconds: that a token is predicted to take; 0 if nothing is predicted.
    """
    tokens, new_tokens = work.prompt_tokens, work.new_tokens
    prompt = random_prompt(model, tokens)
    time_generation(model, prompt, WARM_UP)
    before = _counters(model)
    timings = [time_generation(model, prompt, new_tokens + 1) for _ in range(work.repeats)]
    after = _counters(model)
    forwards = work.repeats * (new_tokens + 1)
    read, copied = ((after[key] - before[key]) / forwards for key in MOVED)

    def throughput(
        test: str, samples: list[float], tokens_each: int, computed: float, planned: float
    ) -> Throughput:
        """One test, of which each forward handles `tokens_each` tokens."""
        forwards_per_second = statistics.mean(samples) / tokens_each
        least = limits.seconds(read, copied, computed)
        return Throughput(
            test=test,
            samples=samples,
            gb_per_second=max(read, copied) * forwards_per_second / 1e9 or None,
            limit_tokens_per_second=tokens_each / least if least else None,
            planned_tokens_per_second=tokens_each / planned if planned else None,
        )

    prefill = [tokens / timing.prefill_seconds for timing in timings]
    decoding = [timing.tokens_per_second() for timing in timings]
    return [
        throughput(f"pp{tokens}", prefill, tokens, 0.0, 0.0),
        throughput(f"tg{new_tokens}", decoding, 1, computed_bytes, planned_seconds),
    ]


def random_prompt(model: Any, tokens: int) -> torch.Tensor:
    """Seeded random token ids [1, tokens] on the model's device."""
    generator = torch.Generator("cpu").manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    return torch.randint(vocabulary, (1, tokens), generator=generator, device="cpu").to(
        model.device
    )


def _counters(model: Any) -> dict[str, int]:
    """What has moved so far; nothing for a stock model."""
    return model.streaming_stats() if hasattr(model, "streaming_stats") else dict.fromkeys(MOVED, 0)
