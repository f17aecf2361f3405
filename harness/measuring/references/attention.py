"""Attention: positions, which keys a query sees, and what it takes from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.measuring.references import rope
from harness.measuring.references.checkpoint import Checkpoint
from harness.measuring.references.decoder import Part

FULL, SLIDING = "full_attention", "sliding_attention"
"""What `layer_types` of a config.json calls a layer."""


def positions(ids: Tensor, mask: Tensor | None) -> Tensor:
    """Each token's place in its text, [B, S], padding on the left not counted.

    Args:
        ids: [B, S].
        mask: [B, S], 0 where a token is padding; None for none.
    """
    present = torch.ones_like(ids) if mask is None else mask.long()
    return (present.cumsum(-1) - 1).clamp(min=0)


def visible(ids: Tensor, mask: Tensor | None, window: int | None = None) -> Tensor:
    """Whether a query sees a key, [B or 1, 1, S, S].

    Args:
        ids: [B, S].
        mask: [B, S], 0 where a token is padding; None for none.
        window: how many keys at most, the query's own included, as many as the rolling buffer of
            https://arxiv.org/abs/2310.06825, section 2, holds; None for all.
    """
    place = torch.arange(ids.shape[1])
    distance = place[:, None] - place
    seen = (distance >= 0) & (distance < (ids.shape[1] if window is None else window))
    return seen[None, None] if mask is None else seen & (mask != 0)[:, None, None]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Tensor,
    scale: float | None = None,
    cap: float | None = None,
) -> Tensor:
    """softmax(q k * scale) v: https://arxiv.org/abs/1706.03762, section 3.2.1.

    Heads share keys and values in groups: https://arxiv.org/abs/2305.13245.

    Args:
        q: [B, S, heads, D].
        k: [B, S, groups, D].
        v: [B, S, groups, E].
        seen: see `visible`.
        scale: of the scores; None for 1 / sqrt(D).
        cap: of the scores, see `capped`.

    Returns:
        [B, S, heads * E].
    """
    shared = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(shared, dim=2), v.repeat_interleave(shared, dim=2)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = capped(torch.einsum("bqhd,bkhd->bhqk", q, k) * scale, cap)
    # Not minus infinity: padding sees no key at all, and is to be no NaN.
    weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)


def capped(x: Tensor, cap: float | None) -> Tensor:
    """Bent to stay below a limit, if there is one: https://arxiv.org/abs/2408.00118, section 2."""
    return x if cap is None else cap * (x / cap).tanh()


def windows(config: Mapping[str, Any]) -> list[int | None]:
    """How many keys each layer's queries see at most, by `layer_types` and `sliding_window`."""
    return [config["sliding_window"] if kind == SLIDING else None for kind in config["layer_types"]]


def project(model: Checkpoint, at: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries [B, S, heads, D], keys and values [B, S, groups, D] of x [B, S, H].

    Args:
        model: has `q_proj`, `k_proj` and `v_proj`.
        at: what their keys begin with.
        x: what attends.
    """
    q, k, v = (
        model.linear(f"{at}.{name}_proj", x).unflatten(-1, (-1, model.head_dim)) for name in "qkv"
    )
    return q, k, v


def grouped(model: Checkpoint, ids: Tensor, mask: Tensor | None, normed: bool = False) -> Part:
    """Llama's attention, with RoPE and Mistral's windows.

    Args:
        model: with `layer_types`, see `windows`.
        ids: [B, S].
        mask: [B, S], 0 where a token is padding; None for none.
        normed: each head's query and key is normalised before it turns, as in Qwen3.
    """
    turn = rope.rotary(rope.parameters(model.config), model.head_dim, positions(ids, mask))
    seen = [visible(ids, mask, window) for window in windows(model.config)]

    def attend(n: int, x: Tensor) -> Tensor:
        at = f"model.layers.{n}.self_attn"
        q, k, v = project(model, at, x)
        if normed:
            q, k = model.rms_norm(f"{at}.q_norm", q), model.rms_norm(f"{at}.k_norm", k)
        return model.linear(f"{at}.o_proj", attention(turn(q), turn(k), v, seen[n]))

    return attend
