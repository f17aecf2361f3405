"""Many prompts by `rabbitllm.Batch`, and in fixed batches by stock's `generate`, on one model."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.askers.asked import LONGEST, left_padded
from rabbitllm import Batch
from rabbitllm.streaming.room import LEAST_CHUNK
from rabbitllm.streaming.working import Work

OFFLOADED = 16, 16
"""Prompts, and new tokens of each, with a cache off the device."""


def measure_batch(
    model: Any, prompts: Sequence[list[int]], new_tokens: int, offloaded: bool | None = None
) -> dict[str, Any]:
    """Figures of all the prompts, the longest first, as `rabbitllm batch` takes them.

    Args:
        model: what answers.
        prompts: all of them.
        new_tokens: of each answer.
        offloaded: where the cache is to lie, see `Batch`.
    """
    with _Timed(model) as timed:
        batch = Batch(model, offloaded=offloaded, prompts_first=True)
        most, rows = (
            0,
            [
                batch.add(prompt, max_new_tokens=new_tokens, do_sample=False)
                for prompt in sorted(prompts, key=len, reverse=True)
            ],
        )
        while batch.step():
            most = max(most, len(batch.begun))
    written = sum(row.answer.result().new_tokens for row in rows)
    about = {"at_once": most, "passes": batch.passes, "cache_offloaded": batch.offloaded}
    return about | timed.figures(prompts, written)


def measure_fixed(
    model: Any, prompts: Sequence[list[int]], new_tokens: int, at_once: int, **options: Any
) -> tuple[dict[str, Any], torch.Tensor]:
    """Figures of one batch: of neighbours by length, from the middle, so an average one's.

    Args:
        model: what answers.
        prompts: of which the batch is taken.
        new_tokens: of each answer.
        at_once: how many.
        options: of `generate`.

    Returns:
        The figures, and the new tokens [at_once, new_tokens].
    """
    ordered = sorted(prompts, key=len)
    first = (len(ordered) - at_once) // 2
    chosen = ordered[first : first + at_once]
    with _Timed(model) as timed:
        tokens = _generate(model, chosen, new_tokens, **options)
    return {"at_once": at_once} | timed.figures(chosen, tokens.numel()), tokens


def measure_all_fixed(
    model: Any, prompts: Sequence[list[int]], new_tokens: int, at_once: int
) -> dict[str, Any]:
    """Figures of all the prompts in batches one after the other, the longest first."""
    ordered = sorted(prompts, key=len, reverse=True)
    written = 0
    with _Timed(model) as timed:
        for first in range(0, len(ordered), at_once):
            written += _generate(model, ordered[first : first + at_once], new_tokens).numel()
    return {"at_once": at_once} | timed.figures(prompts, written)


def _generate(
    model: Any, chosen: Sequence[list[int]], new_tokens: int, **options: Any
) -> torch.Tensor:
    """New tokens [prompts, new_tokens] of stock's `generate`."""
    ids, mask = (each.to(model.device) for each in left_padded(list(chosen)))
    output: torch.Tensor = model.generate(
        ids,
        attention_mask=mask,
        do_sample=False,
        min_new_tokens=new_tokens,
        max_new_tokens=new_tokens,
        **options,
    )
    return output[:, ids.shape[1] :]


def measure_offloaded(model: Any, prompts: Sequence[list[int]]) -> dict[str, Any]:
    """Figures of a short batch with its cache off the device, and whether its tokens are right."""
    at_once, new_tokens = min(OFFLOADED[0], len(prompts)), OFFLOADED[1]
    _, expected = measure_fixed(model, prompts, new_tokens, at_once)
    figures, found = measure_fixed(
        model, prompts, new_tokens, at_once, cache_implementation="offloaded"
    )
    return figures | {"same_tokens": torch.equal(found, expected)}


def fixed_sizes(model: Any, new_tokens: int, most: int) -> Iterator[int]:
    """The largest batch of the longest prompts that the budget has room for, and half of it."""
    largest = _largest(model, Work(1, 1, LONGEST + new_tokens - 1), most)
    yield from sorted({largest, max(1, largest // 2)}, reverse=True)


def size_for_all(model: Any, new_tokens: int, most: int) -> int:
    """The largest batch that also has room to read the longest prompts, in the least chunks."""
    chunk = min(LEAST_CHUNK, LONGEST)
    works = Work(1, 1, LONGEST + new_tokens - 1), Work(1, chunk, LONGEST - chunk)
    return min(_largest(model, work, most) for work in works)


def _largest(model: Any, work: Work, most: int) -> int:
    """How many sequences there is room for at once, each with that work."""

    def fits(rows: int) -> bool:
        return bool(model._rooms.fits(replace(work, sequences=rows), Work(0, 0)))

    return max((rows for rows in range(1, most + 1) if fits(rows)), default=1)


class _Timed:
    """The time of what is inside, and the most that torch held on the device meanwhile."""

    def __init__(self, model: Any) -> None:
        self._device = model.device
        self._cuda = self._device.type == "cuda"

    def __enter__(self) -> "_Timed":
        if self._cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        self._begun = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self._begun
        self.peak = torch.cuda.max_memory_reserved(self._device) if self._cuda else None

    def figures(self, prompts: Sequence[Sequence[int]], written: int) -> dict[str, Any]:
        """The record of it."""
        return {
            "prompts": len(prompts),
            "prompt_tokens": sum(map(len, prompts)),
            "new_tokens": written,
            "seconds": self.seconds,
            "tokens_per_second": written / self.seconds,
            "peak_device_bytes": self.peak,
        }
