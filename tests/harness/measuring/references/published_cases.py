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


@dataclass(frozen=True)
class Case:
    """A tiny checkpoint that stock transformers makes.

    Attributes:
        model_class: stock's class.
        config: arguments of its configuration.
        changes: fields of config.json, dotted, with other values: each must move the logits, of
            stock and of the reference to the same ones.
    """

    model_class: str
    config: dict[str, Any]
    changes: dict[str, Any] = field(default_factory=dict)


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
}
