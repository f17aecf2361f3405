"""ChatGLM2, ChatGLM3 and GLM-4 in its first format -> Glm.

https://huggingface.co/THUDM/chatglm2-6b, chatglm3-6b and glm-4-9b: config.json and
modeling_chatglm.py.
"""

from collections.abc import Mapping
from typing import Any

from transformers.core_model_loading import WeightConverter, WeightRenaming

from rabbitllm.checkpoint.legacy.ops import SplitHeads
from rabbitllm.errors import CheckpointError

WEIGHTS = (
    WeightRenaming("^transformer.embedding.word_embeddings", "model.embed_tokens"),
    WeightRenaming("^transformer.encoder.layers", "model.layers"),
    WeightRenaming("^transformer.encoder.final_layernorm", "model.norm"),
    WeightRenaming("^transformer.output_layer", "lm_head"),
    # Glm computes it; by its own name there, transformers leaves the tensor out without a warning.
    WeightRenaming("^transformer.rotary_pos_emb.inv_freq", "model.rotary_emb.inv_freq"),
    WeightRenaming("self_attention.dense", "self_attn.o_proj"),
    WeightRenaming("mlp.dense_h_to_4h", "mlp.gate_up_proj"),
    WeightRenaming("mlp.dense_4h_to_h", "mlp.down_proj"),
    WeightConverter(
        "self_attention.query_key_value",
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        operations=[SplitHeads()],
    ),
)


def config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Glm, which like ChatGLM rotates pairs of neighbours in the first half of each head."""
    return {
        "vocab_size": fields["padded_vocab_size"],
        "hidden_size": fields["hidden_size"],
        "intermediate_size": fields["ffn_hidden_size"],
        "num_hidden_layers": fields["num_layers"],
        "num_attention_heads": fields["num_attention_heads"],
        "num_key_value_heads": fields["multi_query_group_num"],
        "head_dim": fields["kv_channels"],
        "max_position_embeddings": fields["seq_length"],
        "rms_norm_eps": fields["layernorm_epsilon"],
        "attention_bias": fields["add_qkv_bias"],
        "rope_parameters": _rope(fields),
        # Absent from config.json these would be Glm's own, which are other tokens here.
        "pad_token_id": fields.get("pad_token_id"),
        "eos_token_id": fields.get("eos_token_id", 2),
    }


def _rope(fields: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_ratio` divides positions in ChatGLM2 and multiplies the base in its successors.

    Nothing in config.json but the name that it was published under tells which.
    """
    ratio = float(fields.get("rope_ratio") or 1)
    plain: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}
    name = str(fields.get("_name_or_path", "")).lower()
    if ratio == 1:
        return plain
    if "chatglm2" in name:
        return plain | {"rope_type": "linear", "factor": ratio}
    if "chatglm3" in name or "glm-4" in name:
        return plain | {"rope_theta": 10000.0 * ratio}
    raise CheckpointError(
        f"rope_ratio={ratio:g} divides positions in ChatGLM2, but multiplies RoPE's base in "
        f"ChatGLM3 and GLM-4; _name_or_path={fields.get('_name_or_path')!r} does not say which "
        'this is. Set it to "chatglm2", "chatglm3" or "glm-4" in config.json.'
    )
