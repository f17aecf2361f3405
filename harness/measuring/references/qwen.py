"""QWen, the first generation, as its authors define it.

https://huggingface.co/Qwen/Qwen-7B: config.json, key names and arithmetic, for texts of at most
`seq_length` tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

from harness.measuring.references.common import Decoder, Random, save

LAYERS, HIDDEN, INNER, HEADS, WORDS = 4, 64, 192, 4, 160
CONFIG: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "attn_dropout_prob": 0.0,
    "auto_map": {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    },
    "bf16": False,
    "emb_dropout_prob": 0.0,
    "fp16": False,
    "fp32": True,
    "hidden_size": HIDDEN,
    "initializer_range": 0.02,
    "intermediate_size": INNER,
    "kv_channels": HIDDEN // HEADS,
    "layer_norm_epsilon": 1e-06,
    "max_position_embeddings": 512,
    "model_type": "qwen",
    "no_bias": True,
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "onnx_safe": None,
    "rotary_emb_base": 10000,
    "rotary_pct": 1.0,
    "scale_attn_weights": True,
    "seq_length": 128,
    "tie_word_embeddings": False,
    "tokenizer_class": "QWenTokenizer",
    "transformers_version": "4.32.0",
    "use_cache": True,
    "use_dynamic_ntk": True,
    "use_flash_attn": "auto",
    "use_logn_attn": True,
    "vocab_size": WORDS,
}


def write(folder: Path, seed: int) -> None:
    """A tiny QWen: GPT-2's names, a gated feed-forward of half `intermediate_size`."""
    random = Random(seed)
    weights = {
        "transformer.wte.weight": random.embedding(WORDS, HIDDEN),
        "transformer.ln_f.weight": random.norm(HIDDEN),
        "lm_head.weight": random.matrix(WORDS, HIDDEN),
    }
    for n in range(LAYERS):
        at = f"transformer.h.{n}"
        weights |= {
            f"{at}.attn.c_attn.weight": random.matrix(3 * HIDDEN, HIDDEN),
            f"{at}.attn.c_attn.bias": random.bias(3 * HIDDEN),
            f"{at}.attn.c_proj.weight": random.matrix(HIDDEN, HIDDEN),
            f"{at}.mlp.w1.weight": random.matrix(INNER // 2, HIDDEN),
            f"{at}.mlp.w2.weight": random.matrix(INNER // 2, HIDDEN),
            f"{at}.mlp.c_proj.weight": random.matrix(HIDDEN, INNER // 2),
            f"{at}.ln_1.weight": random.norm(HIDDEN),
            f"{at}.ln_2.weight": random.norm(HIDDEN),
        }
    save(folder, CONFIG, weights)


class Reference(Decoder):
    """QWen: the second of its two feed-forward matrices is the gate."""

    last_norm = "transformer.ln_f"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, layers="transformer.h", epsilon="layer_norm_epsilon")

    @override
    def embed(self, input_ids: Tensor) -> Tensor:
        return self.weights["transformer.wte.weight"][input_ids]

    @override
    def norms(self, layer: str) -> tuple[str, str]:
        return f"{layer}.ln_1", f"{layer}.ln_2"

    @override
    def project(self, layer: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.linear(f"{layer}.attn.c_attn", x).chunk(3, dim=-1)
        return self.split(q), self.split(k), self.split(v)

    @override
    def base(self, length: int) -> float:
        return float(self.config["rotary_emb_base"])

    @override
    def leave_attention(self, layer: str, x: Tensor) -> Tensor:
        return self.linear(f"{layer}.attn.c_proj", x)

    @override
    def feed_forward(self, layer: str, x: Tensor) -> Tensor:
        at = f"{layer}.mlp"
        return self.gated(x, f"{at}.w2", f"{at}.w1", f"{at}.c_proj")
