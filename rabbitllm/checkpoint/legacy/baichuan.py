"""Baichuan and Baichuan2 -> Llama.

https://huggingface.co/baichuan-inc/Baichuan-7B, Baichuan-13B-Base, Baichuan2-7B-Base and
Baichuan2-13B-Base: config.json and the modeling files beside it. The four share a model type, and
all but the first name the same classes in `auto_map`, which each repository defines in its own way.
"""

from collections.abc import Mapping
from typing import Any

from transformers.core_model_loading import Chunk, WeightConverter

from rabbitllm.checkpoint.legacy.ops import NormalizeRows

WEIGHTS = (
    WeightConverter(
        "self_attn.W_pack",
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        operations=[Chunk(dim=0)],
    ),
)
WEIGHTS_2 = (*WEIGHTS, WeightConverter("^lm_head", "lm_head", operations=[NormalizeRows()]))

POSITIONS = {4096: "ROPE", 5120: "ALIBI"}
"""`hidden_size` of the published 7B and 13B models -> how they encode positions."""
VOCAB_SIZE_2 = 125_696


def is_variant(fields: Mapping[str, Any], alibi: bool, second: bool) -> bool:
    """Whether config.json describes this one of the four.

    Positions: an explicit `position_embedding` ("ROPE" or "ALIBI") decides, then the published
    sizes. For any other size it is the field that states the context: the configuration class of
    the 7B models has `max_position_embeddings`, that of the 13B ones only `model_max_length`.

    Generation: Baichuan2 has a vocabulary of its own size, and its configuration classes alone have
    `z_loss_weight`.
    """
    by_context = "ROPE" if "max_position_embeddings" in fields else "ALIBI"
    stated = fields.get("position_embedding") or POSITIONS.get(fields["hidden_size"], by_context)
    is_second = fields["vocab_size"] == VOCAB_SIZE_2 or "z_loss_weight" in fields
    return (stated == "ALIBI", is_second) == (alibi, second)


def config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Llama without biases and with as many key-value heads as heads; RoPE's base is fixed."""
    context = (
        "max_position_embeddings" if "max_position_embeddings" in fields else "model_max_length"
    )
    names = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "rms_norm_eps",
    )
    return {name: fields[name] for name in names} | {
        "hidden_act": fields.get("hidden_act", "silu"),
        "max_position_embeddings": fields[context],
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
