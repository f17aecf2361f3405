"""Qwen2, Qwen2.5, Qwen3 and their mixtures of experts.

https://arxiv.org/abs/2407.10671, section 2.2, and https://arxiv.org/abs/2505.09388, section 2;
config.json and keys as in https://huggingface.co/Qwen/Qwen2.5-0.5B, Qwen1.5-MoE-A2.7B, Qwen3-0.6B
and Qwen3-30B-A3B.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from harness.measuring.references.attention import FULL, SLIDING, grouped
from harness.measuring.references.checkpoint import Checkpoint
from harness.measuring.references.decoder import gated, pre_norm
from harness.measuring.references.experts import mixed, softmax_top


def qwen2(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Llama with biases in the projections of queries, keys and values."""
    return decoder(model, ids, mask, normed=False)


def qwen3(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Without these biases; each head's query and key is normalised."""
    return decoder(model, ids, mask, normed=True)


def decoder(model: Checkpoint, ids: Tensor, mask: Tensor | None, normed: bool) -> Tensor:
    """Logits [B, S, V], of dense models and of mixtures; for `normed` see `grouped`."""
    model = model.assuming(tie_word_embeddings=False, layer_types=layer_types(model.config))

    def feed_forward(n: int, x: Tensor) -> Tensor:
        at = f"model.layers.{n}.mlp"
        return mixture(model, at, x) if is_mixture(model.config, n) else gated(model, at, x)

    return pre_norm(model, ids, model.rms_norm, grouped(model, ids, mask, normed), feed_forward)


def layer_types(config: Mapping[str, Any]) -> list[str]:
    """With `use_sliding_window`, layers from number `max_window_layers` on slide."""
    first = config.get("max_window_layers", 0) if config.get("use_sliding_window") else None
    layers = range(config["num_hidden_layers"])
    return [FULL if first is None or n < first else SLIDING for n in layers]


def is_mixture(config: Mapping[str, Any], n: int) -> bool:
    """Every `decoder_sparse_step`-th layer is one, but for those in `mlp_only_layers`."""
    if "moe_intermediate_size" not in config or n in (config.get("mlp_only_layers") or ()):
        return False
    return bool((n + 1) % config["decoder_sparse_step"] == 0)


def mixture(model: Checkpoint, at: str, x: Tensor) -> Tensor:
    """Routed experts; in Qwen2's also one for all tokens, to the extent that its gate is open."""
    config = model.config
    chosen, weights = softmax_top(
        model.linear(f"{at}.gate", x), config["num_experts_per_tok"], config["norm_topk_prob"]
    )
    y = mixed(x, chosen, weights, lambda n, part: gated(model, f"{at}.experts.{n}", part))
    if "shared_expert_intermediate_size" not in config:
        return y
    gate = model.linear(f"{at}.shared_expert_gate", x).sigmoid()
    return y + gate * gated(model, f"{at}.shared_expert", x)
