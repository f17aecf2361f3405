"""Phi-2, Phi-3, Phi-4 and Phi-3.5-MoE.

https://arxiv.org/abs/2309.05463, section 2, for the first; https://arxiv.org/abs/2404.14219,
section 2, and https://arxiv.org/abs/2503.01743, section 2.1; config.json, keys and the modeling
files in https://huggingface.co/microsoft/phi-2, Phi-3-mini-4k-instruct, Phi-4-mini-instruct and
Phi-3.5-MoE-instruct.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu, silu

from harness.measuring.references import rope
from harness.measuring.references.attention import (
    SLIDING,
    attention,
    grouped,
    positions,
    project,
    visible,
)
from harness.measuring.references.checkpoint import Checkpoint
from harness.measuring.references.decoder import gated, head, pre_norm
from harness.measuring.references.experts import mixed


def phi2(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Attention and feed-forward side by side on one norm, biases everywhere.

    `PhiDecoderLayer` of modeling_phi.py; part of each head turns.
    """
    model = model.assuming(tie_word_embeddings=False, partial_rotary_factor=0.5)
    config, seen = model.config, visible(ids, mask)
    norm = partial(layer_norm, model, epsilon=config["layer_norm_eps"])
    turn = rope.rotary(rope.parameters(config), model.head_dim, positions(ids, mask))
    x = model["model.embed_tokens.weight"][ids]
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}"
        y = norm(f"{at}.input_layernorm", x)
        q, k, v = project(model, f"{at}.self_attn", y)
        attended = model.linear(f"{at}.self_attn.dense", attention(turn(q), turn(k), v, seen))
        inner = gelu(model.linear(f"{at}.mlp.fc1", y), approximate="tanh")
        x = x + attended + model.linear(f"{at}.mlp.fc2", inner)
    return head(model, norm("model.final_layernorm", x))


def phi3(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Llama with queries, keys and values in one matrix, gate and up in another.

    As in Phi-4-mini-instruct's modeling_phi3.py, a query sees `sliding_window` keys. The original
    context stands beside the scaling, not in it.
    """
    model = model.assuming(tie_word_embeddings=False, sliding_window=None)
    config = model.config
    original = {"original_max_position_embeddings": config["original_max_position_embeddings"]}
    fields = rope.parameters(config) | original
    turn = rope.rotary(fields, model.head_dim, positions(ids, mask))
    seen = visible(ids, mask, config["sliding_window"])
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]

    def attend(n: int, x: Tensor) -> Tensor:
        at = f"model.layers.{n}.self_attn"
        fused = model.linear(f"{at}.qkv_proj", x).unflatten(-1, (-1, model.head_dim))
        q, k, v = fused.split((heads, groups, groups), dim=2)
        return model.linear(f"{at}.o_proj", attention(turn(q), turn(k), v, seen))

    def feed_forward(n: int, x: Tensor) -> Tensor:
        at = f"model.layers.{n}.mlp"
        gate, up = model.linear(f"{at}.gate_up_proj", x).chunk(2, dim=-1)
        return model.linear(f"{at}.down_proj", silu(gate) * up)

    return pre_norm(model, ids, model.rms_norm, attend, feed_forward)


def phimoe(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Llama with norms that have biases, and two experts in every layer."""
    layers = [SLIDING] * model.config["num_hidden_layers"]
    model = model.assuming(tie_word_embeddings=False, sliding_window=None, layer_types=layers)
    norm = partial(layer_norm, model, epsilon=model.config["rms_norm_eps"])

    def feed_forward(n: int, x: Tensor) -> Tensor:
        at = f"model.layers.{n}.block_sparse_moe"
        logits = model.linear(f"{at}.gate", x)
        chosen, weights = two_in_turn(logits, model.config["router_jitter_noise"])

        def expert(number: int, part: Tensor) -> Tensor:
            return gated(model, f"{at}.experts.{number}", part, keys=("w1", "w3", "w2"))

        return mixed(x, chosen, weights, expert)

    return pre_norm(model, ids, norm, grouped(model, ids, mask), feed_forward)


def two_in_turn(logits: Tensor, jitter: float) -> tuple[Tensor, Tensor]:
    """The best expert, then the best of the others, each weighed among its near rivals alone.

    `sparsemixer` of modeling_phimoe.py, outside training; https://arxiv.org/abs/2409.12136.

    Args:
        logits: the router's, [..., experts].
        jitter: half the distance from the best, as a fraction, within which an expert is a rival.

    Returns:
        Numbers of experts and their weights, [..., 2] both.
    """
    chosen, weights = [], []
    left = logits
    for _ in range(2):
        best, number = left.max(-1, keepdim=True)
        far = (best - logits) / logits.abs().maximum(best) > 2 * jitter
        weights.append(left.masked_fill(far, -torch.inf).softmax(-1).gather(-1, number))
        chosen.append(number)
        left = left.scatter(-1, number, -torch.inf)
    return torch.cat(chosen, -1), torch.cat(weights, -1)


def layer_norm(model: Checkpoint, key: str, x: Tensor, epsilon: float) -> Tensor:
    """With mean and variance, weight and bias: https://arxiv.org/abs/1607.06450."""
    weight, bias = model[f"{key}.weight"], model[f"{key}.bias"]
    return torch.nn.functional.layer_norm(x, weight.shape, weight, bias, epsilon)
