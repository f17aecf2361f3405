"""What nearly all decoders have in common: residual blocks between an embedding and a head."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn.functional import linear, silu

from harness.measuring.references.checkpoint import Checkpoint

Forward = Callable[[Checkpoint, Tensor, Tensor | None], Tensor]
"""From a checkpoint, ids [B, S] and a mask [B, S] that is 0 at padding: logits [B, S, V]."""
Part = Callable[[int, Tensor], Tensor]
"""Attention or feed-forward of the layer with a number, [B, S, H] -> [B, S, H]."""
Norm = Callable[[str, Tensor], Tensor]
"""A norm by its key."""


def pre_norm(
    model: Checkpoint, ids: Tensor, norm: Norm, attend: Part, feed_forward: Part
) -> Tensor:
    """Llama's decoder: each part gets the normalised stream, and its answer is added to it.

    https://arxiv.org/abs/2302.13971, section 2.2; keys as in
    https://huggingface.co/meta-llama/Llama-2-7b-hf.

    Returns:
        Logits [B, S, V].
    """
    x = model["model.embed_tokens.weight"][ids]
    for n in range(model.config["num_hidden_layers"]):
        at = f"model.layers.{n}"
        x = x + attend(n, norm(f"{at}.input_layernorm", x))
        x = x + feed_forward(n, norm(f"{at}.post_attention_layernorm", x))
    return head(model, norm("model.norm", x))


def head(model: Checkpoint, x: Tensor) -> Tensor:
    """Logits [B, S, V] of the last states [B, S, H]; with tied weights by the embedding's rows."""
    if not model.config["tie_word_embeddings"]:
        return model.linear("lm_head", x)
    logits: Tensor = linear(x, model["model.embed_tokens.weight"])
    return logits


def gated(
    model: Checkpoint,
    at: str,
    x: Tensor,
    activation: Callable[[Tensor], Tensor] = silu,
    keys: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> Tensor:
    """A gated feed-forward, [..., H] -> [..., H]: https://arxiv.org/abs/2002.05202, section 2.

    Args:
        model: has its three projections.
        at: what their keys begin with.
        x: [..., H].
        activation: of the gate.
        keys: gate, up and down.
    """
    gate, up, down = (f"{at}.{key}" for key in keys)
    return model.linear(down, activation(model.linear(gate, x)) * model.linear(up, x))
