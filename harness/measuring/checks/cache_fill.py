"""The cache is not filled as stock fills it.

After the prefill and after each step, every layer has seen and keeps as many tokens as stock's,
sliding layers included, and in the end holds the same keys and values. Right tokens from a cache
that is not filled count as degraded.
"""

from __future__ import annotations

import torch

from harness.measuring.checks import Outcome
from harness.measuring.parity import close
from harness.measuring.subject import PROMPT, Subject


def run(subject: Subject) -> Outcome:
    """Compares lengths, then contents."""
    stock, ours = subject.stock_decoded, subject.streamed_decoded
    seen = [[seen for seen, _ in layers] for layers in stock.lengths]
    due = [[PROMPT + step] * len(layers) for step, layers in enumerate(stock.lengths)]
    figures = {
        "layers": len(ours.lengths[-1]),
        "seen": [seen for seen, _ in ours.lengths[-1]],
        "kept": [kept for _, kept in ours.lengths[-1]],
    }
    if seen != due:
        return Outcome(
            "reference-broken", figures, f"stock's cache saw {seen[-1]} tokens, not {due[-1]}"
        )
    unequal = [
        index
        for index, pair in enumerate(zip(ours.lengths, stock.lengths, strict=True))
        if pair[0] != pair[1]
    ]
    if unequal:
        step = unequal[0]
        lengths = f"(seen, kept) {ours.lengths[step]}, stock {stock.lengths[step]}"
        message = f"cache lengths differ after step {step}: {lengths}"
        right = all(
            torch.equal(a.argmax(-1), b.argmax(-1))
            for a, b in zip(ours.logits, stock.logits, strict=True)
        )
        return Outcome("degraded" if right else "fail", figures, message)
    different = [
        layer
        for pair in (("keys", ours.keys, stock.keys), ("values", ours.values, stock.values))
        for layer in _different(pair[1], pair[2], subject)
    ]
    if different:
        return Outcome("fail", figures, f"keys or values differ in layers {sorted(set(different))}")
    return Outcome("pass", figures)


def _different(
    ours: list[torch.Tensor | None], stock: list[torch.Tensor | None], subject: Subject
) -> list[int]:
    return [
        layer
        for layer, (a, b) in enumerate(zip(ours, stock, strict=True))
        if a is not None and b is not None and not close(a, b, subject.tolerance)
    ]
