"""Decoding token by token with a cache differs from stock's, or from a forward without a cache.

Against stock's cached decoding: bit for bit on CPU. Against the uncached forward, which sums in
another order: within the dtype's tolerance.
"""

from __future__ import annotations

import torch

from harness.measuring.checks import Outcome
from harness.measuring.parity import compare, within_tolerance, worst
from harness.measuring.subject import PROMPT, Subject


def run(subject: Subject) -> Outcome:
    """Compares the prefill and each step."""
    stock, ours = subject.stock_decoded, subject.streamed_decoded
    steps = [compare(a, b) for a, b in zip(ours.logits, stock.logits, strict=True)]
    wrong_steps = [index for index, step in enumerate(steps) if not subject.equal(step)]
    cached = compare(torch.cat(ours.logits, dim=1), subject.streamed_uncached)
    stock_cached = compare(torch.cat(stock.logits, dim=1), subject.stock_uncached)
    figures = worst(steps) | {
        "steps": len(steps) - 1,
        "cached_vs_uncached_max_abs": cached["max_abs"],
        "stock_cached_vs_uncached_max_abs": stock_cached["max_abs"],
    }
    if not within_tolerance(stock_cached, subject.dtype):
        difference = stock_cached["max_abs"]
        return Outcome(
            "reference-broken", figures, f"stock's own cached decoding is off by {difference:.3g}"
        )
    if wrong_steps:
        figures["first_divergent_token"] = PROMPT + max(wrong_steps[0] - 1, 0)
        where = f"step {wrong_steps[0]}" if wrong_steps[0] else "the prefill"
        return Outcome("fail", figures, f"{where} is off by {steps[wrong_steps[0]]['max_abs']:.3g}")
    if not within_tolerance(cached, subject.dtype):
        return Outcome("fail", figures, f"cached and uncached differ by {cached['max_abs']:.3g}")
    return Outcome("pass", figures)
