"""QWen, the first generation -> Qwen2.

https://huggingface.co/Qwen/Qwen-7B: config.json and modeling_qwen.py.
"""

import logging
from collections.abc import Mapping
from typing import Any

from transformers.core_model_loading import Chunk, WeightConverter, WeightRenaming

from rabbitllm.errors import CheckpointError

logger = logging.getLogger(__name__)

WEIGHTS = (
    WeightRenaming("^transformer.wte", "model.embed_tokens"),
    WeightRenaming("^transformer.ln_f", "model.norm"),
    WeightRenaming("^transformer.h", "model.layers"),
    WeightRenaming("ln_1", "input_layernorm"),
    WeightRenaming("ln_2", "post_attention_layernorm"),
    WeightRenaming("attn.c_proj", "self_attn.o_proj"),
    WeightRenaming("mlp.w2", "mlp.gate_proj"),
    WeightRenaming("mlp.w1", "mlp.up_proj"),
    WeightRenaming("mlp.c_proj", "mlp.down_proj"),
    WeightConverter(
        "attn.c_attn",
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        operations=[Chunk(dim=0)],
    ),
)
BEYOND = ("use_logn_attn", "use_dynamic_ntk")
"""What changes the arithmetic once there are more than `seq_length` tokens."""


def config(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Qwen2 with as many key-value heads as heads; exact up to `seq_length` tokens.

    `intermediate_size` counts the rows of both halves of the gated feed-forward.
    """
    heads, hidden = fields["num_attention_heads"], fields["hidden_size"]
    if fields.get("kv_channels", hidden // heads) * heads != hidden:
        raise CheckpointError(
            f"QWen with kv_channels={fields['kv_channels']} times {heads} heads other than "
            f"hidden_size={hidden} cannot be run: its own code has no such output projection."
        )
    context = fields["seq_length"]
    if not any(fields.get(name, True) for name in BEYOND):
        context = fields.get("max_position_embeddings", context)
    elif fields.get("max_position_embeddings", context) > context:
        logger.warning(
            "QWen's log-n attention and dynamic NTK, for more than seq_length=%d tokens, have no "
            "equivalent: max_position_embeddings is %d, and longer inputs lose accuracy.",
            context,
            context,
        )
    return {
        "vocab_size": fields["vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": fields["intermediate_size"] // 2,
        "num_hidden_layers": fields["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": context,
        "rms_norm_eps": fields["layer_norm_epsilon"],
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(fields["rotary_emb_base"]),
        },
    }
