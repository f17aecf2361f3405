"""ChatGLM2 and ChatGLM3 as their authors define them.

https://huggingface.co/THUDM/chatglm2-6b, chatglm2-6b-32k, chatglm3-6b and chatglm3-6b-32k:
config.json, key names and arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu
from typing_extensions import override

from harness.measuring.references.common import Decoder, Random, angles, publish

LAYERS, HIDDEN, INNER, HEADS, GROUPS, WIDTH, WORDS = 4, 64, 96, 4, 2, 16, 160


def _write(folder: Path, seed: int, **fields: Any) -> None:
    config = {
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_residual_connection_post_layernorm": False,
        "architectures": ["ChatGLMModel"],
        "auto_map": {
            "AutoConfig": "configuration_chatglm.ChatGLMConfig",
            "AutoModel": "modeling_chatglm.ChatGLMForConditionalGeneration",
        },
        "eos_token_id": 2,
        "ffn_hidden_size": INNER,
        "hidden_size": HIDDEN,
        "kv_channels": WIDTH,
        "layernorm_epsilon": 1e-05,
        "model_type": "chatglm",
        "multi_query_attention": True,
        "multi_query_group_num": GROUPS,
        "num_attention_heads": HEADS,
        "num_layers": LAYERS,
        "original_rope": True,
        "pad_token_id": 0,
        "padded_vocab_size": WORDS,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 128,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
    } | fields
    random, rows = Random(seed), (HEADS + 2 * GROUPS) * WIDTH
    weights = {
        "transformer.embedding.word_embeddings.weight": random.embedding(WORDS, HIDDEN),
        "transformer.encoder.final_layernorm.weight": random.norm(HIDDEN),
        "transformer.output_layer.weight": random.matrix(WORDS, HIDDEN),
        "transformer.rotary_pos_emb.inv_freq": angles(2, WIDTH // 2, 10000.0)[1],
    }
    for n in range(LAYERS):
        at = f"transformer.encoder.layers.{n}"
        weights |= {
            f"{at}.self_attention.query_key_value.weight": random.matrix(rows, HIDDEN),
            f"{at}.self_attention.query_key_value.bias": random.bias(rows),
            f"{at}.self_attention.dense.weight": random.matrix(HIDDEN, HEADS * WIDTH),
            f"{at}.mlp.dense_h_to_4h.weight": random.matrix(2 * INNER, HIDDEN),
            f"{at}.mlp.dense_4h_to_h.weight": random.matrix(HIDDEN, INNER),
            f"{at}.input_layernorm.weight": random.norm(HIDDEN),
            f"{at}.post_attention_layernorm.weight": random.norm(HIDDEN),
        }
    publish(folder, config, weights)


def write_2(folder: Path, seed: int) -> None:
    """A tiny ChatGLM2."""
    _write(folder, seed, _name_or_path="THUDM/chatglm2-6b", quantization_bit=0)


def write_2_32k(folder: Path, seed: int) -> None:
    """A tiny ChatGLM2 for long texts: positions are divided."""
    _write(folder, seed, _name_or_path="THUDM/chatglm2-6b-32k", rope_ratio=4)


def write_3(folder: Path, seed: int) -> None:
    """A tiny ChatGLM3 for long texts: RoPE's base is multiplied."""
    _write(folder, seed, _name_or_path="THUDM/chatglm3-6b-32k", rope_ratio=50, pre_seq_len=None)


class Reference(Decoder):
    """ChatGLM3: RoPE on neighbours in the first half of a head; gate and up in one matrix."""

    last_norm = "transformer.encoder.final_layernorm"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "transformer.encoder.layers", "num_layers", "layernorm_epsilon")

    @override
    def embed(self, input_ids: Tensor) -> Tensor:
        return self.weights["transformer.embedding.word_embeddings.weight"][input_ids]

    @override
    def project(self, layer: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused = self.split(self.linear(f"{layer}.self_attention.query_key_value", x))
        groups = self.config["multi_query_group_num"]
        q, k, v = fused.split([fused.shape[2] - 2 * groups, groups, groups], dim=2)
        return q, k, v

    @override
    def rotate(self, x: Tensor) -> Tensor:
        turned, kept = x.chunk(2, dim=-1)
        theta = self.angles(x.shape[1])[:, None]
        cos, sin, even, odd = theta.cos(), theta.sin(), turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1)
        return torch.cat((pairs.flatten(-2), kept), dim=-1)

    def angles(self, length: int) -> Tensor:
        """[length, a quarter of a head's entries]."""
        return angles(length, self.width // 2, 10000.0 * self.config.get("rope_ratio", 1))

    @override
    def leave_attention(self, layer: str, x: Tensor) -> Tensor:
        return self.linear(f"{layer}.self_attention.dense", x)

    @override
    def feed_forward(self, layer: str, x: Tensor) -> Tensor:
        gate, up = self.linear(f"{layer}.mlp.dense_h_to_4h", x).chunk(2, dim=-1)
        return self.linear(f"{layer}.mlp.dense_4h_to_h", silu(gate) * up)

    @override
    def head_rows(self) -> Tensor:
        return self.weights["transformer.output_layer.weight"]


class Reference2(Reference):
    """ChatGLM2."""

    @override
    def angles(self, length: int) -> Tensor:
        ratio: float = self.config.get("rope_ratio", 1)
        return angles(length, self.width // 2, 10000.0) / ratio
