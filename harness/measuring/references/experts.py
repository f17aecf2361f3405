"""Mixtures of experts: which experts get a token, and the sum of their answers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def softmax_top(logits: Tensor, count: int, normalised: bool) -> tuple[Tensor, Tensor]:
    """The most probable experts, and their probabilities, which may be made to sum to 1.

    https://arxiv.org/abs/2401.06066, section 2, equations 3 to 5, where they are not; normalised,
    they are what a softmax over the chosen alone gives: https://arxiv.org/abs/2401.04088, section
    2.1.

    Args:
        logits: the router's, [..., experts].
        count: experts for each token.
        normalised: whether the weights of a token sum to 1.

    Returns:
        Numbers of experts and their weights, [..., count] both.
    """
    weights, chosen = logits.softmax(-1).topk(count)
    return chosen, weights / weights.sum(-1, keepdim=True) if normalised else weights


def limited(scores: Tensor, groups: int, kept: int, best: int, value: float) -> Tensor:
    """Scores with a value in place of those outside the best groups of experts.

    https://arxiv.org/abs/2405.04434, section 2.1.3.

    Args:
        scores: [..., experts]; neighbours are a group.
        groups: how many there are.
        kept: groups whose scores stay.
        best: how many of its scores, the highest ones, add up to the score of a group.
        value: of the others.
    """
    each = scores.unflatten(-1, (groups, -1))
    chosen = each.topk(best).values.sum(-1).topk(kept).indices
    inside = torch.zeros(each.shape[:-1], dtype=torch.bool).scatter(-1, chosen, True)
    masked: Tensor = each.masked_fill(~inside[..., None], value).flatten(-2)
    return masked


def mixed(
    x: Tensor, chosen: Tensor, weights: Tensor, expert: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """The weighted sum of the answers of the chosen experts.

    Args:
        x: [..., H].
        chosen: numbers of experts, [..., k], none twice.
        weights: of their answers, [..., k].
        expert: the answer [tokens, H] of the expert with a number to [tokens, H].
    """
    y = torch.zeros_like(x)
    for number in chosen.unique().tolist():
        given = (chosen == number).any(-1)
        share = (weights * (chosen == number)).sum(-1, keepdim=True)
        y[given] += share[given] * expert(number, x[given])
    return y
