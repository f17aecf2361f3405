"""Contract probes: what a release's stock layers are called with and what they return."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel

from harness.measuring import caches
from harness.measuring.subject import layer_lengths, reference_side

TOKENS = 3
BLOCK = "GradientCheckpointingLayer"
"""The base class of decoder layers; looked for by name, for a release may have none."""
ARGUMENTS = ("cache_position", "position_embeddings", "position_ids", "attention_mask")
"""Of a block, which releases pass or leave out."""


def blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> outermost decoder layer, in the order of the modules."""
    return dict(_outermost(model, ""))


def text_blocks(model: Any) -> dict[str, nn.Module]:
    """Those of the blocks that run for a text: not those of a vision tower."""
    inside = {id(module) for module in model.get_decoder().modules()}
    return {name: block for name, block in blocks(model).items() if id(block) in inside}


@dataclass
class Seen:
    """What hooks saw of a module, as it came: nothing of the hooks' own can fail.

    Attributes:
        calls: positional and keyword arguments of each call.
        results: what each call returned.
    """

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)


def carriers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """Name -> module whose call streaming waits for: the blocks of a text, embedding and head."""
    names = {id(module): name for name, module in model.named_modules()}
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return text_blocks(model) | {names[id(end)]: end for end in ends if end is not None}


@torch.no_grad()
def watch(model: PreTrainedModel) -> tuple[dict[str, Seen], Cache]:
    """What hooks see of the carriers while stock runs a prompt of three tokens, and its cache.

    Raises:
        StockError: stock itself failed.
    """
    seen: dict[str, Seen] = {}
    handles: list[Any] = []
    for name, module in carriers(model).items():
        own = seen[name] = Seen()
        handles += [
            module.register_forward_pre_hook(
                lambda _, args, kwargs, own=own: own.calls.append((args, kwargs)), with_kwargs=True
            ),
            module.register_forward_hook(
                lambda _, _args, output, own=own: own.results.append(output)
            ),
        ]
    cache = DynamicCache(config=model.config)
    ids = torch.arange(3, 3 + TOKENS, device=model.device)[None]
    try:
        with reference_side():
            model(ids, use_cache=True, **caches.given(model, cache))
    finally:
        for handle in handles:
            handle.remove()
    return seen, cache


def missing(seen: Mapping[str, Seen], names: Collection[str]) -> list[str]:
    """What of the contract that streaming rests on a release does not keep, in words.

    Args:
        seen: name -> what hooks saw, see `watch`.
        names: of the blocks of a text.
    """
    wrong = [] if names else [f"no layer of its decoder is a {BLOCK}"]
    if past := [name for name, own in seen.items() if not own.calls]:
        wrong.append(f"it calls {', '.join(past)} past their hooks")
    return wrong


def described(model: PreTrainedModel, name: str, seen: Seen, cache: Cache) -> dict[str, Any]:
    """The contract between a stock model and a block of it that was called.

    Returns:
        layer_returns: type of the block's result; cache_keyword: the argument that it gets the
            cache in, None if it gets none; passed: names of the arguments that it gets; accepts:
            names in its signature; cache_lengths: tokens in each layer's cache afterwards;
            head_dim: of the first attention module, and implied_head_dim: hidden size by heads,
            which need not be the same.
    """
    block, text = model.get_submodule(name), model.config.get_text_config()
    (args, kwargs), output = seen.calls[0], seen.results[0]
    passed = sorted(name for name, value in kwargs.items() if value is not None)
    return {
        "positional": len(args),
        "passed": passed,
        "cache_keyword": next((n for n, v in kwargs.items() if isinstance(v, Cache)), None),
        "layer_returns": "Tensor" if isinstance(output, torch.Tensor) else type(output).__name__,
        "accepts": [n for n in inspect.signature(block.forward).parameters if n != "self"],
        "cache_lengths": [seen for seen, _ in layer_lengths(cache)],
        "head_dim": next((m.head_dim for m in block.modules() if hasattr(m, "head_dim")), None),
        "implied_head_dim": text.hidden_size // text.num_attention_heads,
        **{f"gets_{argument}": argument in passed for argument in ARGUMENTS},
    }


def _outermost(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, child in module.named_children():
        if any(base.__name__ == BLOCK for base in type(child).__mro__):
            yield prefix + name, child
        else:
            yield from _outermost(child, f"{prefix}{name}.")
