"""Baichuan-7B, Baichuan-13B and their second generation as their authors define them.

https://huggingface.co/baichuan-inc/Baichuan-7B, Baichuan-13B-Base, Baichuan2-7B-Base and
Baichuan2-13B-Base: config.json, key names and arithmetic.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from harness.measuring.references.common import Decoder, Random, llama_weights, publish

BAICHUAN_7B = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 128}
BAICHUAN2_7B = BAICHUAN_7B | {"model_max_length": 128, "z_loss_weight": 0}
BAICHUAN_13B = {"hidden_size": 96, "num_attention_heads": 6, "model_max_length": 128}
"""Six heads, because 40 is no power of 2 either."""
BAICHUAN2_13B = BAICHUAN_13B | {"z_loss_weight": 0}


def _write(folder: Path, seed: int, fields: dict[str, Any], name: str) -> None:
    config: dict[str, Any] = {
        "architectures": [f"{name}ForCausalLM"],
        "auto_map": {
            "AutoConfig": f"configuration_baichuan.{name}Config",
            "AutoModelForCausalLM": f"modeling_baichuan.{name}ForCausalLM",
        },
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "intermediate_size": 96,
        "model_type": "baichuan",
        "num_hidden_layers": 4,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "transformers_version": "4.29.1",
        "use_cache": True,
        "vocab_size": 160,
    } | fields
    random = Random(seed)
    weights = llama_weights(random, config, config["num_attention_heads"])
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}.self_attn"
        parts = [weights.pop(f"{at}.{part}_proj.weight") for part in "qkv"]
        weights[f"{at}.W_pack.weight"] = torch.cat(parts)
    # Rows of many lengths: a head that forgets to normalise them must show.
    weights["lm_head.weight"] *= random.bias(config["vocab_size"]).mul(2).exp()[:, None]
    publish(folder, config, weights)


def write_7b(folder: Path, seed: int) -> None:
    """A tiny Baichuan-7B: query, key and value in one matrix; RoPE."""
    _write(folder, seed, BAICHUAN_7B, "BaiChuan")


def write_2_7b(folder: Path, seed: int) -> None:
    """A tiny Baichuan2-7B: the same, and a head with normalised rows."""
    _write(folder, seed, BAICHUAN2_7B, "Baichuan")


def write_13b(folder: Path, seed: int) -> None:
    """A tiny Baichuan-13B: ALiBi."""
    _write(folder, seed, BAICHUAN_13B, "Baichuan")


def write_2_13b(folder: Path, seed: int) -> None:
    """A tiny Baichuan2-13B: ALiBi, and a head with normalised rows."""
    _write(folder, seed, BAICHUAN2_13B, "Baichuan")


class Reference(Decoder):
    """Baichuan-7B."""

    @override
    def project(self, layer: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.linear(f"{layer}.self_attn.W_pack", x).chunk(3, dim=-1)
        return self.split(q), self.split(k), self.split(v)


class NormalisedHead(Reference):
    """Baichuan2-7B: logits are the projections on rows of length 1."""

    @override
    def head_rows(self) -> Tensor:
        rows = self.weights["lm_head.weight"]
        lengths: Tensor = rows.norm(dim=1, keepdim=True)
        return rows / lengths


class Alibi(Reference):
    """Baichuan-13B: a penalty for distance in place of positions, https://arxiv.org/abs/2108.12409."""

    @override
    def rotate(self, x: Tensor) -> Tensor:
        return x

    @override
    def bias(self, length: int) -> Tensor:
        heads = self.config["num_attention_heads"]
        below = 2 ** math.floor(math.log2(heads))
        slopes = [2 ** (-8 * n / below) for n in range(1, below + 1)]
        between = [2 ** (-8 * n / (2 * below)) for n in range(1, 2 * below, 2)]
        chosen = torch.tensor((slopes + between)[:heads])
        positions = torch.arange(length)
        return chosen[:, None, None] * (positions[None, :] - positions[:, None])


class NormalisedHeadAlibi(Alibi, NormalisedHead):
    """Baichuan2-13B."""
