"""InternLM 1, 2 and 3 as their authors define them.

https://huggingface.co/internlm/internlm-7b, internlm2-7b and internlm3-8b-instruct: config.json,
key names and arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from typing_extensions import override

from harness.measuring.references.common import Decoder, Random, llama_weights, publish, save

LAYERS, HIDDEN, INNER, HEADS, GROUPS, WORDS = 4, 64, 96, 4, 2, 160
WIDTH = HIDDEN // HEADS


def _config(version: str, **fields: Any) -> dict[str, Any]:
    name = f"InternLM{version}"
    return {
        "architectures": [f"{name}ForCausalLM"],
        "auto_map": {
            "AutoConfig": f"configuration_internlm{version}.{name}Config",
            "AutoModelForCausalLM": f"modeling_internlm{version}.{name}ForCausalLM",
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "max_position_embeddings": 128,
        "model_type": f"internlm{version}",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "pad_token_id": 2,
        "rms_norm_eps": 1e-05,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": WORDS,
    } | fields


def write_1(folder: Path, seed: int) -> None:
    """A tiny InternLM: Llama's keys, biases in attention, as many key heads as heads."""
    config = _config("", bias=True, rotary={"base": 10000, "type": "dynamic"})
    publish(folder, config, llama_weights(Random(seed), config, HEADS, attention_bias=True))


def write_2(folder: Path, seed: int) -> None:
    """A tiny InternLM2: keys of its own; query, key and value rows interleaved by group."""
    scaling = {"factor": 2.0, "type": "dynamic"}
    config = _config("2", bias=False, num_key_value_heads=GROUPS, rope_theta=1000000)
    random = Random(seed)
    weights = {
        "model.tok_embeddings.weight": random.embedding(WORDS, HIDDEN),
        "model.norm.weight": random.norm(HIDDEN),
        "output.weight": random.matrix(WORDS, HIDDEN),
    }
    for n in range(LAYERS):
        at = f"model.layers.{n}"
        weights |= {
            f"{at}.attention.wqkv.weight": random.matrix((HEADS + 2 * GROUPS) * WIDTH, HIDDEN),
            f"{at}.attention.wo.weight": random.matrix(HIDDEN, HIDDEN),
            f"{at}.feed_forward.w1.weight": random.matrix(INNER, HIDDEN),
            f"{at}.feed_forward.w3.weight": random.matrix(INNER, HIDDEN),
            f"{at}.feed_forward.w2.weight": random.matrix(HIDDEN, INNER),
            f"{at}.attention_norm.weight": random.norm(HIDDEN),
            f"{at}.ffn_norm.weight": random.norm(HIDDEN),
        }
    save(folder, config | {"attn_implementation": "eager", "rope_scaling": scaling}, weights)


def write_3(folder: Path, seed: int) -> None:
    """A tiny InternLM3: Llama's keys, grouped queries, biases in every projection."""
    config = _config("3", bias=True, qkv_bias=True, num_key_value_heads=GROUPS, head_dim=WIDTH)
    config |= {"rope_scaling": {"factor": 6.0, "rope_type": "dynamic"}, "rope_theta": 50000000}
    weights = llama_weights(Random(seed), config, GROUPS, attention_bias=True, mlp_bias=True)
    save(folder, config, weights)


class Reference(Decoder):
    """InternLM 1 and 3: Llama, whose base grows with texts longer than the context."""

    @override
    def base(self, length: int) -> float:
        """Dynamic NTK: www.reddit.com/r/LocalLLaMA/comments/14mrgpr, with the width of a head."""
        rotary = self.config.get("rotary") or {"base": self.config["rope_theta"]}
        factor = self.config.get("rope_scaling", {}).get("factor", 1.0)
        stretch = length / self.config["max_position_embeddings"]
        growth = max(1.0, factor * stretch - (factor - 1))
        return float(rotary["base"] * growth ** (self.width / (self.width - 2)))


class Reference2(Reference):
    """InternLM 2."""

    @override
    def embed(self, input_ids: Tensor) -> Tensor:
        return self.weights["model.tok_embeddings.weight"][input_ids]

    @override
    def norms(self, layer: str) -> tuple[str, str]:
        return f"{layer}.attention_norm", f"{layer}.ffn_norm"

    @override
    def project(self, layer: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        groups = self.config["num_key_value_heads"]
        fused = self.split(self.linear(f"{layer}.attention.wqkv", x)).unflatten(2, (groups, -1))
        return fused[:, :, :, :-2].flatten(2, 3), fused[:, :, :, -2], fused[:, :, :, -1]

    @override
    def leave_attention(self, layer: str, x: Tensor) -> Tensor:
        return self.linear(f"{layer}.attention.wo", x)

    @override
    def feed_forward(self, layer: str, x: Tensor) -> Tensor:
        at = f"{layer}.feed_forward"
        return self.gated(x, f"{at}.w1", f"{at}.w3", f"{at}.w2")

    @override
    def head_rows(self) -> Tensor:
        return self.weights["output.weight"]
