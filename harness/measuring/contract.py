"""Contract probes: what a release's stock layers are called with and what they return."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from harness.measuring.subject import layer_length

TOKENS = 3


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> outermost decoder layer, in the order of the modules."""
    return dict(_outermost(model, ""))


def text_blocks(model: Any) -> dict[str, nn.Module]:
    """Those of the blocks that run for a text: not those of a vision tower."""
    inside = {id(module) for module in model.get_decoder().modules()}
    return {name: block for name, block in blocks(model).items() if id(block) in inside}


@torch.no_grad()
def probe(model: PreTrainedModel) -> dict[str, Any]:
    """The contract between a stock model and its blocks, seen on a prompt of three tokens.

    Returns:
        layer_returns: type of the first block's result; cache_keyword: the argument that it gets
            the cache in, None if
        it gets none; passed: names of the arguments that it gets; accepts: names in its signature;
        cache_lengths: tokens in each layer's cache afterwards; head_dim: of the first attention
            module, and implied_head_dim: hidden size by
        heads, which need not be the same.
    """
    seen: dict[str, Any] = {}

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen["positional"] = len(args)
        seen["passed"] = sorted(name for name, value in kwargs.items() if value is not None)
        seen["cache_keyword"] = next((n for n, v in kwargs.items() if isinstance(v, Cache)), None)

    def after(_: nn.Module, _args: Any, output: Any) -> None:
        seen["layer_returns"] = (
            "Tensor" if isinstance(output, torch.Tensor) else type(output).__name__
        )

    first = next(iter(text_blocks(model).values()))
    handles = [
        first.register_forward_pre_hook(before, with_kwargs=True),
        first.register_forward_hook(after),
    ]
    cache = DynamicCache(config=model.config)
    try:
        ids = torch.arange(3, 3 + TOKENS, device=model.device)[None]
        model(ids, past_key_values=cache, use_cache=True)
    finally:
        for handle in handles:
            handle.remove()
    text = model.config.get_text_config()
    seen["accepts"] = [
        name for name in inspect.signature(first.forward).parameters if name != "self"
    ]
    seen["cache_lengths"] = [layer_length(layer)[0] for layer in cache.layers]
    seen["head_dim"] = next((m.head_dim for m in first.modules() if hasattr(m, "head_dim")), None)
    seen["implied_head_dim"] = text.hidden_size // text.num_attention_heads
    for name in ("cache_position", "position_embeddings", "position_ids", "attention_mask"):
        seen[f"gets_{name}"] = name in seen["passed"]
    return seen


def _outermost(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if isinstance(child, GradientCheckpointingLayer):
            yield prefix + name, child
        else:
            yield from _outermost(child, f"{prefix}{name}.")
