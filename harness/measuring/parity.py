"""How far two runs of a model are apart: figures, and whether they count as equal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference between two orders of summation, as a fraction of the largest logit."""


def compare(ours: Tensor, stock: Tensor) -> dict[str, Any]:
    """The figures that describe how far `ours` is from `stock`.

    Args:
        ours: logits [..., vocabulary].
        stock: logits of the same shape.

    Returns:
        bit_equal, finite; max_abs: largest difference; relative: that, by the largest logit of
        `stock`;
        nmse: squared error by the energy of `stock`; kl: mean KL divergence of ours from stock's
            distribution, in
        nats; top1: fraction of positions with the same best token.

    Raises:
        ValueError: the shapes differ.
    """
    if ours.shape != stock.shape:
        raise ValueError(f"logits have shape {list(ours.shape)}, stock's {list(stock.shape)}")
    ours, stock = ours.detach().cpu(), stock.detach().cpu()
    bit_equal = ours.dtype == stock.dtype and torch.equal(ours, stock)
    a, b = ours.double(), stock.double()
    difference = (a - b).abs().max().item()
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    energy = b.square().sum().item()
    return {
        "bit_equal": bit_equal,
        "finite": bool(a.isfinite().all()),
        "max_abs": difference,
        "relative": difference / max(b.abs().max().item(), 1e-30),
        "nmse": (a - b).square().sum().item() / max(energy, 1e-30),
        "kl": (log_b.exp() * (log_b - log_a)).sum(-1).mean().item(),
        "top1": (a.argmax(-1) == b.argmax(-1)).double().mean().item(),
    }


def within_tolerance(figures: dict[str, Any], dtype: torch.dtype) -> bool:
    """Whether the difference is no more than another order of summation makes."""
    return equal(figures, TOLERANCE[dtype])


def equal(figures: dict[str, Any], tolerance: float) -> bool:
    """Whether two runs of one computation agree.

    Args:
        figures: from `compare`.
        tolerance: largest difference, as a fraction of the largest logit; 0 asks for equal bits.
    """
    close = figures["relative"] <= tolerance if tolerance else figures["bit_equal"]
    return bool(figures["finite"] and close)


def close(ours: Tensor, stock: Tensor, tolerance: float) -> bool:
    """Whether two tensors hold the same values.

    Args:
        ours: any shape.
        stock: another shape is another value.
        tolerance: largest difference, as a fraction of the largest value of `stock`.
    """
    if ours.shape != stock.shape:
        return False
    return bool((ours - stock).abs().max() <= tolerance * stock.abs().max())


def worst(figures: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the comparison that is furthest apart.

    A NaN is furthest of all.
    """
    return max(figures, key=lambda f: (not f["finite"], not f["bit_equal"], f["max_abs"]))


def first_divergent(ours: Tensor, stock: Tensor) -> int | None:
    """The first position at which two rows of tokens differ, None if they do not."""
    shared = min(len(ours), len(stock))
    differs = (ours[:shared] != stock[:shared]).nonzero()
    if len(differs):
        return int(differs[0])
    return None if len(ours) == len(stock) else shared


def until_divergence(ours: Tensor, stock: Tensor) -> Tensor:
    """Which steps of two greedy generations continue the same tokens.

    Where answers may differ by rounding, the best two tokens of a step can change places, after
    which all is different. The logits of that step still have to agree, those behind it cannot.

    Args:
        ours: generated token ids [batch, steps].
        stock: of the same shape.

    Returns:
        [batch, steps]: true up to the first step at which a row's tokens differ, that included.
    """
    differs = (ours != stock).cpu().cumsum(dim=1)
    return torch.nn.functional.pad(differs[:, :-1], (1, 0)) == 0
