"""Llama 2, 3 and 3.2, and what has their arithmetic.

https://arxiv.org/abs/2307.09288 and https://arxiv.org/abs/2407.21783; config.json and keys as in
https://huggingface.co/meta-llama/Llama-2-7b-hf and Llama-3.2-1B.
"""

from __future__ import annotations

from torch import Tensor

from harness.measuring.references.attention import FULL, grouped
from harness.measuring.references.checkpoint import Checkpoint
from harness.measuring.references.decoder import gated, pre_norm


def llama(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Grouped queries with RoPE, a gated feed-forward, root mean square norms."""
    layers = [FULL] * model.config["num_hidden_layers"]
    model = model.assuming(tie_word_embeddings=False, layer_types=layers)

    def feed_forward(n: int, x: Tensor) -> Tensor:
        return gated(model, f"model.layers.{n}.mlp", x)

    return pre_norm(model, ids, model.rms_norm, grouped(model, ids, mask), feed_forward)
