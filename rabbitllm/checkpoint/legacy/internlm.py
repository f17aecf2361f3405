"""InternLM 1, 2 and 3 -> Llama.

https://huggingface.co/internlm/internlm-7b, internlm2-7b and internlm3-8b-instruct: config.json and
the modeling files beside it.
"""

from collections.abc import Mapping
from typing import Any

from transformers.core_model_loading import WeightConverter, WeightRenaming

from rabbitllm.checkpoint.legacy.ops import SplitGroups
from rabbitllm.errors import CheckpointError

WEIGHTS_2 = (
    WeightRenaming("^model.tok_embeddings", "model.embed_tokens"),
    WeightRenaming("^output", "lm_head"),
    WeightRenaming("attention_norm", "input_layernorm"),
    WeightRenaming("ffn_norm", "post_attention_layernorm"),
    WeightRenaming("attention.wo", "self_attn.o_proj"),
    WeightRenaming("feed_forward.w1", "mlp.gate_proj"),
    WeightRenaming("feed_forward.w3", "mlp.up_proj"),
    WeightRenaming("feed_forward.w2", "mlp.down_proj"),
    WeightConverter(
        "attention.wqkv",
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        operations=[SplitGroups()],
    ),
)


def config_1(fields: Mapping[str, Any]) -> dict[str, Any]:
    """InternLM 1: biases in all four projections of attention, and RoPE as `rotary` says.

    Its dynamic NTK has factor 1: the base grows with the length once that is beyond
    `max_position_embeddings`. There a prefill is exact, and a cached decode is not: the original
    caches keys before their rotation and turns all of them again by the new base.
    """
    rotary = fields.get("rotary") or {"type": "dynamic", "base": 10000}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(rotary["base"])}
    if rotary["type"] == "dynamic":
        rope |= {"rope_type": "dynamic", "factor": 1.0}
    elif rotary["type"] != "origin":
        raise CheckpointError(f"InternLM with rotary type {rotary['type']!r} is not known.")
    return _llama(fields) | {"attention_bias": fields.get("bias", True), "rope_parameters": rope}


def config_2(fields: Mapping[str, Any]) -> dict[str, Any]:
    """InternLM 2: grouped queries, one bias switch, `rope_scaling` as in Llama."""
    return _llama(fields) | {
        "attention_bias": fields.get("bias", True),
        "rope_parameters": _rope(fields),
    }


def config_3(fields: Mapping[str, Any]) -> dict[str, Any]:
    """InternLM 3, for releases before its own class; that is Llama too."""
    bias, qkv_bias = fields.get("bias", False), fields.get("qkv_bias", False)
    if bias != qkv_bias:
        raise CheckpointError(
            f"InternLM3 with bias={bias} and qkv_bias={qkv_bias} cannot be run: Llama has one "
            "switch for all projections of attention."
        )
    return _llama(fields) | {
        "attention_bias": qkv_bias,
        "mlp_bias": bias,
        "rope_parameters": _rope(fields),
    }


def _llama(fields: Mapping[str, Any]) -> dict[str, Any]:
    required = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "max_position_embeddings",
        "rms_norm_eps",
    )
    optional = ("num_key_value_heads", "head_dim", "hidden_act")
    return {name: fields[name] for name in required} | {
        name: fields[name] for name in optional if name in fields
    }


def _rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` as one dict; "type" is the older name of "rope_type"."""
    scaling = dict(fields.get("rope_scaling") or {})
    rope_type = scaling.pop("type", "default")
    return {"rope_type": rope_type, "rope_theta": float(fields["rope_theta"])} | scaling
