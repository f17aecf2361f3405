"""Gemma 2 and Gemma 3, and the language part of Gemma 3 with vision.

https://arxiv.org/abs/2408.00118 and https://arxiv.org/abs/2503.19786, section 2 of both, and
gemma/model.py of https://github.com/google/gemma_pytorch; config.json and keys as in
https://huggingface.co/google/gemma-2-2b, gemma-3-1b-it and gemma-3-4b-it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor
from torch.nn.functional import gelu

from harness.measuring.references import rope
from harness.measuring.references.attention import (
    FULL,
    SLIDING,
    attention,
    capped,
    positions,
    project,
    visible,
    windows,
)
from harness.measuring.references.checkpoint import Checkpoint, rms_norm
from harness.measuring.references.decoder import gated, head


def gemma2(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Sliding and full layers in turn; scores and logits are capped."""
    fields = rope.parameters(model.config)
    ropes = {FULL: fields, SLIDING: fields}
    return decoder(alternating(model, 2), ids, mask, ropes, normed=False)


def gemma3(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Five sliding layers to a full one, with a RoPE each; queries and keys are normalised.

    What its config.json leaves unsaid is as in gemma-3-4b-it, whose own leaves out most.
    """
    model = alternating(
        model.assuming(
            max_position_embeddings=131072,
            num_attention_heads=8,
            head_dim=256,
            query_pre_attn_scalar=256,
            rms_norm_eps=1e-6,
            rope_theta=1e6,
            rope_local_base_freq=1e4,
        ),
        model.config.get("sliding_window_pattern", 6),
    )
    ropes = {kind: rope_fields(model.config, kind) for kind in (FULL, SLIDING)}
    return decoder(model, ids, mask, ropes, normed=True)


def gemma3_text_part(model: Checkpoint, ids: Tensor, mask: Tensor | None) -> Tensor:
    """Gemma 3 with vision, on a text without images."""
    return gemma3(model.part("text_config", "language_model."), ids, mask)


def alternating(model: Checkpoint, pattern: int) -> Checkpoint:
    """With tied weights and, unless it says otherwise, a full layer after `pattern` - 1 others."""
    layers = range(1, model.config["num_hidden_layers"] + 1)
    kinds = [SLIDING if n % pattern else FULL for n in layers]
    return model.assuming(tie_word_embeddings=True, layer_types=kinds)


def rope_fields(config: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """RoPE's fields of a kind of layer: only full ones are scaled."""
    own: dict[str, Any] = {}
    if "rope_parameters" in config:
        own = {"rope_parameters": config["rope_parameters"][kind]}
    elif kind == SLIDING:
        own = {"rope_theta": config["rope_local_base_freq"], "rope_scaling": None}
    return rope.parameters({**config, **own})


def decoder(
    model: Checkpoint,
    ids: Tensor,
    mask: Tensor | None,
    ropes: Mapping[str, Mapping[str, Any]],
    normed: bool,
) -> Tensor:
    """Norms before and after each part, embeddings times sqrt(H), GeGLU.

    `Gemma2DecoderLayer` and `GemmaAttention` of gemma/model.py, the factor in its
    `GemmaForCausalLM`; logits are capped in its `Sampler`.

    Args:
        model: with all fields.
        ids: [B, S].
        mask: [B, S], 0 where a token is padding; None for none.
        ropes: RoPE's fields for a kind of layer.
        normed: each head's query and key is normalised.

    Returns:
        Logits [B, S, V].
    """
    config = model.config
    places = positions(ids, mask)
    turns = {kind: rope.rotary(ropes[kind], model.head_dim, places) for kind in ropes}
    seen = [visible(ids, mask, window) for window in windows(config)]
    scale, cap = config["query_pre_attn_scalar"] ** -0.5, config.get("attn_logit_softcapping")

    def norm(key: str, x: Tensor) -> Tensor:
        """The weights are what is added to 1: `RMSNorm` of gemma/model.py."""
        return rms_norm(x, config["rms_norm_eps"]) * (1 + model[f"{key}.weight"])

    def attend(n: int, x: Tensor) -> Tensor:
        at, turn = f"model.layers.{n}.self_attn", turns[config["layer_types"][n]]
        q, k, v = project(model, at, x)
        if normed:
            q, k = norm(f"{at}.q_norm", q), norm(f"{at}.k_norm", k)
        return model.linear(f"{at}.o_proj", attention(turn(q), turn(k), v, seen[n], scale, cap))

    geglu = partial(gelu, approximate="tanh")
    x = model["model.embed_tokens.weight"][ids] * config["hidden_size"] ** 0.5
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}"
        attended = attend(n, norm(f"{at}.input_layernorm", x))
        x = x + norm(f"{at}.post_attention_layernorm", attended)
        fed = gated(model, f"{at}.mlp", norm(f"{at}.pre_feedforward_layernorm", x), geglu)
        x = x + norm(f"{at}.post_feedforward_layernorm", fed)
    return capped(head(model, norm("model.norm", x)), config.get("final_logit_softcapping"))
