"""ALiBi by the inputs of a model with rotary positions: all positions 0, and a mask with slopes.

At position 0 a rotation is the identity, so RoPE does nothing; the additive mask carries the rest:
https://arxiv.org/abs/2108.12409.
"""

import inspect
import math
from typing import Any

import torch
from torch import nn
from transformers import Cache

BACKENDS = ("sdpa", "eager")
WHY = "ALiBi needs an additive mask for each head, which only sdpa and eager take"


def inputs(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[()], dict[str, Any]]:
    """A forward pre-hook with kwargs for a stock base model such as LlamaModel.

    The mask takes the place of the one that the stock forward would make. It is right for a batch
    with padding, a cache that grows and a static one, and takes in a mask that is 4-D already.

    Raises:
        ValueError: the attention backend was changed to one that cannot take such a mask.
    """
    config: Any = model.config
    if config._attn_implementation not in BACKENDS:
        raise ValueError(f"attn_implementation={config._attn_implementation!r}: {WHY}.")
    names = inspect.signature(model.forward).parameters
    named = kwargs | dict(zip(names, args, strict=False))
    ids, given = named.get("input_ids"), named.get("attention_mask")
    # By its type: releases up to 5.23 call it past_key_values, 5.24 calls it cache.
    cache = next((value for value in named.values() if isinstance(value, Cache)), None)
    tokens: torch.Tensor = named["inputs_embeds"] if ids is None else ids
    queries = torch.arange(tokens.shape[1], device=tokens.device)
    if cache is not None:
        queries = queries + cache.get_seq_length()
    bias = slopes(config.num_attention_heads).to(tokens.device)
    named["attention_mask"] = mask(bias, queries, _count(queries, given, cache), given, model.dtype)
    named["position_ids"] = torch.zeros_like(queries)[None]
    return (), named


def slopes(heads: int) -> torch.Tensor:
    """The slope of each head, [heads] float32: a geometric sequence from 2^(-8/heads) on.

    For a number of heads that is no power of 2: those of the power below, then every other one of
    the power above, as many as are missing.
    """
    power = 2 ** math.floor(math.log2(heads))
    exponents = [8 * (n + 1) / power for n in range(power)]
    exponents += [4 * (n + 1) / power for n in range(0, 2 * (heads - power), 2)]
    return torch.tensor([2.0**-exponent for exponent in exponents])


def mask(
    slopes: torch.Tensor,
    queries: torch.Tensor,
    keys: int,
    given: torch.Tensor | None,
    dtype: Any,
) -> torch.Tensor:
    """What is added to the scores: slope * (key - query) where a query may look, else the minimum.

    Args:
        slopes: [heads] float32.
        queries: their indices among the keys, [queries].
        keys: how many.
        given: the mask of padding [batch, at most keys], 1 for tokens; or one that says everything,
            [batch, 1 or heads, queries, keys], boolean or additive; or None for no padding.
        dtype: of the result.

    Returns:
        [batch (1 without a mask), heads, queries, keys].
    """
    lowest = torch.finfo(dtype).min
    distance = torch.arange(keys, device=queries.device) - queries[:, None]
    shape = (slopes.shape[0], *distance.shape)
    # In the narrow dtype at once: in float32 a long prompt's mask takes gigabytes more.
    bias = torch.mul(
        slopes[:, None, None],
        distance.to(slopes.dtype),
        out=torch.empty(shape, dtype=dtype, device=queries.device),
    )[None]
    if given is not None and given.ndim == 4:
        if given.dtype == torch.bool:
            return bias.masked_fill(~given, lowest)
        return (bias.float() + given.float()).clamp(min=lowest).to(dtype)
    bias = bias.masked_fill_(distance > 0, lowest)
    if given is None:
        return bias
    padded = nn.functional.pad(given, (0, keys - given.shape[-1]))
    return bias.masked_fill(padded[:, None, None, :] == 0, lowest)


def _count(queries: torch.Tensor, given: torch.Tensor | None, cache: Any) -> int:
    """How many keys attention sees: up to the last query, or all that a static cache can hold."""
    if given is not None and given.ndim == 4:
        return given.shape[-1]
    static = getattr(cache.layers[0], "max_cache_len", 0) if cache and cache.layers else 0
    return max(int(queries[-1]) + 1, static)
