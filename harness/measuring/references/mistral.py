"""Mistral and Mixtral.

https://arxiv.org/abs/2310.06825 and https://arxiv.org/abs/2401.04088; config.json and keys as in
https://huggingface.co/mistralai/Mistral-7B-v0.1 and Mixtral-8x7B-v0.1.
"""

from __future__ import annotations

from torch import Tensor

from harness.measuring.references.attention import SLIDING, grouped
from harness.measuring.references.checkpoint import Checkpoint
from harness.measuring.references.decoder import gated, pre_norm
from harness.measuring.references.experts import mixed, softmax_top


def mistral(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Llama whose layers all slide, unless `sliding_window` is null."""
    model = sliding(model)

    def feed_forward(n: int, x: Tensor) -> Tensor:
        return gated(model, f"model.layers.{n}.mlp", x)

    return pre_norm(model, ids, model.rms_norm, grouped(model, ids, mask), feed_forward)


def mixtral(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Mistral with a mixture of experts in every layer: section 2.1."""
    model = sliding(model)

    def feed_forward(n: int, x: Tensor) -> Tensor:
        at = f"model.layers.{n}.block_sparse_moe"
        chosen, weights = softmax_top(
            model.linear(f"{at}.gate", x), model.config["num_experts_per_tok"], normalised=True
        )

        def expert(number: int, part: Tensor) -> Tensor:
            return gated(model, f"{at}.experts.{number}", part, keys=("w1", "w3", "w2"))

        return mixed(x, chosen, weights, expert)

    return pre_norm(model, ids, model.rms_norm, grouped(model, ids, mask), feed_forward)


def sliding(model: Checkpoint) -> Checkpoint:
    """The checkpoint with what its config.json leaves unsaid."""
    layers = [SLIDING] * model.config["num_hidden_layers"]
    return model.assuming(tie_word_embeddings=False, layer_types=layers)
