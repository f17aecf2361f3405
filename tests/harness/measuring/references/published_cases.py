"""Tiny checkpoints for the references: fields that matter are not what a class has by default."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TINY: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 0.03,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
THETA = {"rope_type": "default", "rope_theta": 300.0}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 300.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 300.0,
    "factor": 4.0,
    "beta_fast": 1.0,
    "beta_slow": 0.125,
    "original_max_position_embeddings": 16,
}
MIXTURE = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
GEMMA = TINY | {
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "sliding_window": 7,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "tie_word_embeddings": True,
}
LOCAL_AND_GLOBAL = {
    "full_attention": {"rope_type": "linear", "rope_theta": 3000.0, "factor": 4.0},
    "sliding_attention": THETA,
}
GEMMA3_CHANGES = {
    "rms_norm_eps": 0.3,
    "rope_parameters.full_attention.rope_theta": 300.0,
    "rope_parameters.full_attention.factor": 2.0,
    "rope_parameters.sliding_attention.rope_theta": 3000.0,
    "sliding_window": 8,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "query_pre_attn_scalar": 16,
}
DEEPSEEK = TINY | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 12,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 3,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "first_k_dense_replace": 1,
    "q_lora_rank": 20,
    "kv_lora_rank": 18,
    "qk_rope_head_dim": 32,
    "qk_nope_head_dim": 10,
    "v_head_dim": 14,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 300.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
    "original_max_position_embeddings": 16,
}


UNSAID: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {"tie_word_embeddings": False},
    "qwen2-tied": {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]},
    "mistral": {"tie_word_embeddings": False},
    "gemma2": {
        "tie_word_embeddings": True,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "gemma3_text": {
        "layer_types": ["sliding_attention"] * 3,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "deepseek_v3": {"tie_word_embeddings": False},
    "phi": {"rope_parameters.partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": None},
}
"""What fields of config.json mean that a published one may leave out."""


@dataclass(frozen=True)
class Case:
    """A tiny checkpoint that stock transformers makes.

    Attributes:
        model_class: stock's class.
        config: arguments of its configuration.
        changes: fields of config.json, dotted, with other values: each must move the logits, of
            stock and of the reference to the same ones.
        departures: likewise, but stock's logits are others than the reference's: this release does
            not compute what is published.
    """

    model_class: str
    config: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)
    departures: dict[str, Any] = field(default_factory=dict)


CASES = {
    "llama": Case(
        "LlamaForCausalLM",
        TINY | {"rope_parameters": THETA, "head_dim": 16},
        {
            "rms_norm_eps": 0.3,
            "rope_parameters.rope_theta": 3000.0,
        },
    ),
    "llama-scaled": Case(
        "LlamaForCausalLM",
        TINY
        | {
            "rope_parameters": LLAMA3,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
        },
        {
            "rope_parameters.factor": 2.0,
            "rope_parameters.low_freq_factor": 0.5,
            "rope_parameters.high_freq_factor": 8.0,
            "rope_parameters.original_max_position_embeddings": 64,
        },
    ),
    "llama-linear": Case(
        "LlamaForCausalLM",
        TINY | {"rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0}},
        {"rope_parameters.factor": 2.0},
    ),
    "llama-yarn": Case(
        "LlamaForCausalLM",
        TINY | {"rope_parameters": YARN, "head_dim": 32},
        {
            "rope_parameters.factor": 2.0,
            "rope_parameters.beta_fast": 0.5,
            "rope_parameters.beta_slow": 0.25,
            "rope_parameters.original_max_position_embeddings": 8,
        },
    ),
    "qwen2": Case(
        "Qwen2ForCausalLM",
        TINY | {"rope_parameters": THETA, "head_dim": 16},
        {"rms_norm_eps": 0.3, "rope_parameters.rope_theta": 3000.0},
    ),
    "qwen2-tied": Case(
        "Qwen2ForCausalLM",
        TINY
        | {
            "rope_parameters": YARN,
            "tie_word_embeddings": True,
            "use_sliding_window": True,
            "sliding_window": 7,
            "max_window_layers": 1,
        },
        {"rope_parameters.factor": 2.0, "sliding_window": 8},
    ),
    "qwen2_moe": Case(
        "Qwen2MoeForCausalLM",
        TINY
        | MIXTURE
        | {
            "rope_parameters": THETA,
            "shared_expert_intermediate_size": 40,
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
        },
        {"rms_norm_eps": 0.3, "norm_topk_prob": True, "num_experts_per_tok": 2},
    ),
    "qwen3": Case(
        "Qwen3ForCausalLM",
        TINY | {"rope_parameters": THETA, "head_dim": 32, "attention_bias": True},
        {"rms_norm_eps": 0.3, "rope_parameters.rope_theta": 3000.0},
    ),
    "qwen3_moe": Case(
        "Qwen3MoeForCausalLM",
        TINY
        | MIXTURE
        | {
            "rope_parameters": YARN,
            "head_dim": 32,
            "norm_topk_prob": True,
            "mlp_only_layers": [1],
            "tie_word_embeddings": True,
        },
        {"rms_norm_eps": 0.3, "norm_topk_prob": False, "num_experts_per_tok": 2},
    ),
    "mistral": Case(
        "MistralForCausalLM",
        TINY | {"rope_parameters": THETA, "head_dim": 32, "sliding_window": 7},
        {
            "rms_norm_eps": 0.3,
            "rope_parameters.rope_theta": 3000.0,
            "sliding_window": 8,
        },
    ),
    "mistral-full": Case(
        "MistralForCausalLM",
        TINY | {"rope_parameters": THETA, "sliding_window": None, "tie_word_embeddings": True},
        {"sliding_window": 23},
    ),
    "mixtral": Case(
        "MixtralForCausalLM",
        TINY
        | {
            "rope_parameters": THETA,
            "num_local_experts": 6,
            "num_experts_per_tok": 3,
            "sliding_window": None,
        },
        {"rms_norm_eps": 0.3, "num_experts_per_tok": 2, "sliding_window": 7},
    ),
    "gemma2": Case(
        "Gemma2ForCausalLM",
        GEMMA
        | {
            "rope_parameters": THETA,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 5.0,
            "attention_bias": True,
        },
        {
            "rms_norm_eps": 0.3,
            "rope_parameters.rope_theta": 3000.0,
            "sliding_window": 8,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "query_pre_attn_scalar": 16,
        },
    ),
    "gemma3_text": Case(
        "Gemma3ForCausalLM",
        GEMMA | {"rope_parameters": LOCAL_AND_GLOBAL},
        GEMMA3_CHANGES,
    ),
    "gemma3": Case(
        "Gemma3ForConditionalGeneration",
        {
            "text_config": GEMMA | {"rope_parameters": LOCAL_AND_GLOBAL},
            "vision_config": {
                "hidden_size": 16,
                "intermediate_size": 24,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 16,
                "patch_size": 8,
            },
            "mm_tokens_per_image": 4,
        },
        {f"text_config.{name}": value for name, value in GEMMA3_CHANGES.items()},
    ),
    "deepseek_v2": Case(
        "DeepseekV2ForCausalLM",
        DEEPSEEK
        | {
            "rope_parameters": YARN | {"mscale": 0.5, "mscale_all_dim": 1.5},
            "topk_method": "group_limited_greedy",
            "attention_bias": True,
        },
        {
            "rms_norm_eps": 0.3,
            "rope_parameters.rope_theta": 3000.0,
            "rope_parameters.factor": 2.0,
            "rope_parameters.mscale": 1.0,
            "rope_parameters.mscale_all_dim": 1.0,
            "topk_method": "greedy",
            "topk_group": 2,
            "num_experts_per_tok": 1,
            "routed_scaling_factor": 1.0,
        },
        {"norm_topk_prob": True},
    ),
    "deepseek_v2-greedy": Case(
        "DeepseekV2ForCausalLM",
        DEEPSEEK
        | {
            "rope_parameters": THETA,
            "topk_method": "greedy",
            "q_lora_rank": None,
            "tie_word_embeddings": True,
        },
        {"rope_parameters.rope_theta": 3000.0},
    ),
    "deepseek_v3": Case(
        "DeepseekV3ForCausalLM",
        DEEPSEEK
        | {
            "rope_parameters": YARN | {"mscale": 0.5, "mscale_all_dim": 1.5},
            "norm_topk_prob": True,
        },
        {
            "rms_norm_eps": 0.3,
            "rope_parameters.rope_theta": 3000.0,
            "rope_parameters.factor": 2.0,
            "rope_parameters.mscale": 1.0,
            "rope_parameters.mscale_all_dim": 1.0,
            "n_group": 6,
            "topk_group": 2,
            "norm_topk_prob": False,
            "num_experts_per_tok": 2,
            "routed_scaling_factor": 1.0,
        },
    ),
    "deepseek_v3-direct": Case(
        "DeepseekV3ForCausalLM",
        DEEPSEEK
        | {
            "rope_parameters": THETA,
            "q_lora_rank": None,
            "norm_topk_prob": False,
            "attention_bias": True,
            "tie_word_embeddings": True,
        },
        {"rope_parameters.rope_theta": 3000.0, "norm_topk_prob": True},
    ),
    "phi": Case(
        "PhiForCausalLM",
        TINY
        | {
            "layer_norm_eps": 0.03,
            "rope_parameters": THETA | {"partial_rotary_factor": 0.5},
        },
        {
            "layer_norm_eps": 0.3,
            "rope_parameters.rope_theta": 3000.0,
            "rope_parameters.partial_rotary_factor": 1.0,
        },
    ),
    "phi3": Case(
        "Phi3ForCausalLM",
        TINY
        | {
            "rope_parameters": THETA,
            "original_max_position_embeddings": 64,
            "sliding_window": 7,
        },
        {"rms_norm_eps": 0.3, "rope_parameters.rope_theta": 3000.0, "sliding_window": 8},
    ),
    "phi3-longrope": Case(
        "Phi3ForCausalLM",
        TINY
        | {
            "rope_parameters": LONGROPE,
            "original_max_position_embeddings": 16,
        },
        {
            "max_position_embeddings": 128,
            "rope_parameters.long_factor": [1.0, 2.0, 4.0, 8.0, 16.0, 32.0],
            "original_max_position_embeddings": 24,
        },
    ),
    "phi4-mini": Case(
        "Phi3ForCausalLM",
        TINY
        | {
            "hidden_size": 64,
            "rope_parameters": LONGROPE | {"partial_rotary_factor": 0.75},
            "original_max_position_embeddings": 16,
            "tie_word_embeddings": True,
        },
        {"original_max_position_embeddings": 24},
    ),
    "phimoe": Case(
        "PhimoeForCausalLM",
        TINY
        | {
            "rope_parameters": LONGROPE
            | {
                "original_max_position_embeddings": 24,
                "short_mscale": 1.3,
                "long_mscale": 0.7,
            },
            "num_local_experts": 6,
            "router_jitter_noise": 0.2,
            "attention_bias": True,
            "lm_head_bias": True,
            "sliding_window": 7,
        },
        {
            "rms_norm_eps": 0.3,
            "router_jitter_noise": 0.1,
            "rope_parameters.short_mscale": 1.0,
            "rope_parameters.short_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "sliding_window": 8,
        },
        {"rope_parameters.original_max_position_embeddings": 16},
    ),
}
