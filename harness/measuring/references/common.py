"""What the references share: Llama's decoder, which all these families vary, in plain float32.

Nothing here comes from transformers or from the engine, because a reference checks both.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from harness.measuring.references.pieces import tokenizer_model
from harness.measuring.weights import load_weights, save_weights, weight_files

SHARDS = 2
"""Files of a checkpoint in .bin format."""


class Random:
    """Seeded weights that keep activations near 1, so that every part of a model matters."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def matrix(self, rows: int, columns: int) -> Tensor:
        """[rows, columns], the rows' lengths near 1."""
        return torch.randn(rows, columns, generator=self._generator) / math.sqrt(columns)

    def embedding(self, rows: int, columns: int) -> Tensor:
        """[rows, columns], entries near 1."""
        return torch.randn(rows, columns, generator=self._generator)

    def bias(self, rows: int) -> Tensor:
        """[rows], entries near 1/2."""
        return torch.randn(rows, generator=self._generator) / 2

    def norm(self, rows: int) -> Tensor:
        """[rows], entries around 1."""
        return 1 + torch.randn(rows, generator=self._generator) / 4


def save(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Writes config.json and model.safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    save_weights(weights, folder / "model.safetensors")


def publish(folder: Path, config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
    """Writes a checkpoint as before there was safetensors: .bin shards, their index, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = [f"pytorch_model-{n + 1:05d}-of-{SHARDS:05d}.bin" for n in range(SHARDS)]
    keys, each = list(weights), -(-len(weights) // SHARDS)
    weight_map = {key: shards[n // each] for n, key in enumerate(keys)}
    for shard in shards:
        held = {key: weights[key] for key in keys if weight_map[key] == shard}
        save_weights(held, folder / shard)
    size = sum(weight.nbytes for weight in weights.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    texts = {
        "config.json": config,
        "pytorch_model.bin.index.json": index,
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["tokenization.Tokenizer", None]}},
    }
    for name, fields in texts.items():
        (folder / name).write_text(json.dumps(fields, indent=2), encoding="utf-8")
    (folder / "tokenizer.model").write_bytes(tokenizer_model())


class Decoder:
    """Llama: https://arxiv.org/abs/2302.13971. A family overrides what it does in another way.

    Attributes:
        config: the fields of config.json.
        weights: the checkpoint's tensors by their keys, float32.
        layers: what the keys of each layer begin with.
        epsilon: of the norms.
        last_norm: the key of the norm before the head.
    """

    last_norm = "model.norm"

    def __init__(
        self,
        folder: Path,
        layers: str = "model.layers",
        count: str = "num_hidden_layers",
        epsilon: str = "rms_norm_eps",
    ) -> None:
        self.config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
        self.weights = {
            key: tensor.float()
            for file in weight_files(folder)
            for key, tensor in load_weights(file).items()
        }
        self.layers = tuple(f"{layers}.{n}" for n in range(self.config[count]))
        self.epsilon = float(self.config[epsilon])

    @torch.no_grad()
    def __call__(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        kept: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """Logits [B, S, V] in float32, without a cache.

        Args:
            input_ids: [B, S].
            attention_mask: [B, S], 0 where a token is padding.
            kept: gets what a cache keeps of each layer: keys, rotated, and values, [B, S, groups,
                D].
        """
        x = self.embed(input_ids)
        for layer in self.layers:
            first, second = self.norms(layer)
            q, k, v = self.project(layer, self.norm(first, x))
            q, k, bias = self.rotate(q), self.rotate(k), self.bias(input_ids.shape[1])
            if kept is not None:
                kept.append((k, v))
            attended = attention(q, k, v, attention_mask, bias)
            x = x + self.leave_attention(layer, attended)
            x = x + self.feed_forward(layer, self.norm(second, x))
        return self.head(x)

    def linear(self, key: str, x: Tensor) -> Tensor:
        """A projection by its key; with a bias if the checkpoint holds one."""
        y: Tensor = linear(x, self.weights[f"{key}.weight"], self.weights.get(f"{key}.bias"))
        return y

    def norm(self, key: str, x: Tensor) -> Tensor:
        """Root mean square norm over the last dimension: https://arxiv.org/abs/1910.07467."""
        scale: Tensor = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return x * scale * self.weights[f"{key}.weight"]

    def split(self, x: Tensor) -> Tensor:
        """[B, S, heads * D] -> [B, S, heads, D]."""
        return x.view(*x.shape[:-1], -1, self.width)

    def gated(self, x: Tensor, gate: str, up: str, down: str) -> Tensor:
        """SwiGLU by its three keys: https://arxiv.org/abs/2002.05202."""
        return self.linear(down, silu(self.linear(gate, x)) * self.linear(up, x))

    @property
    def width(self) -> int:
        """Entries of a head."""
        return int(self.config["hidden_size"] // self.config["num_attention_heads"])

    def embed(self, input_ids: Tensor) -> Tensor:
        """[B, S] -> [B, S, H]."""
        return self.weights["model.embed_tokens.weight"][input_ids]

    def norms(self, layer: str) -> tuple[str, str]:
        """The keys of the norms before attention and before the feed-forward."""
        return f"{layer}.input_layernorm", f"{layer}.post_attention_layernorm"

    def project(self, layer: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, S, H] -> queries [B, S, heads, D], keys and values [B, S, groups, D]."""
        q, k, v = (self.split(self.linear(f"{layer}.self_attn.{n}_proj", x)) for n in "qkv")
        return q, k, v

    def rotate(self, x: Tensor) -> Tensor:
        """Positions into queries or keys [B, S, heads, D]: entry i pairs with entry i + D/2."""
        theta = angles(x.shape[1], self.width, self.base(x.shape[1]))[:, None]
        first, second = x.chunk(2, dim=-1)
        cos, sin = theta.cos(), theta.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)

    def base(self, length: int) -> float:
        """RoPE's base for a text of this length."""
        return 10000.0

    def bias(self, length: int) -> Tensor | None:
        """What is added to the scores, [heads, length, length]."""
        return None

    def leave_attention(self, layer: str, x: Tensor) -> Tensor:
        """[B, S, heads * D] -> [B, S, H]."""
        return self.linear(f"{layer}.self_attn.o_proj", x)

    def feed_forward(self, layer: str, x: Tensor) -> Tensor:
        """[B, S, H] -> [B, S, H]."""
        at = f"{layer}.mlp"
        return self.gated(x, f"{at}.gate_proj", f"{at}.up_proj", f"{at}.down_proj")

    def head(self, x: Tensor) -> Tensor:
        """The last norm and the logits, [B, S, H] -> [B, S, V]."""
        logits: Tensor = linear(self.norm(self.last_norm, x), self.head_rows())
        return logits

    def head_rows(self) -> Tensor:
        """What the logits are projections on, [V, H]."""
        return self.weights["lm_head.weight"]


def angles(length: int, width: int, base: float) -> Tensor:
    """RoPE's angle at each position of each pair, [length, width / 2]: arxiv.org/abs/2104.09864."""
    return torch.arange(length)[:, None] * base ** (-torch.arange(0, width, 2) / width)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, bias: Tensor | None) -> Tensor:
    """Causal attention whose heads share keys and values in groups.

    Args:
        q: [B, S, heads, D].
        k: [B, S, groups, D].
        v: [B, S, groups, D].
        mask: [B, S], 0 where a key is padding.
        bias: added to the scores, [heads, S, S].

    Returns:
        [B, S, heads * D].
    """
    shared = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(shared, dim=2), v.repeat_interleave(shared, dim=2)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    scores = scores if bias is None else scores + bias
    hidden = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool).triu(1)[None, None]
    if mask is not None:
        hidden = hidden | (mask[:, None, None, :] == 0)
    weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v).flatten(2)


def llama_weights(
    random: Random,
    config: Mapping[str, Any],
    groups: int,
    attention_bias: bool = False,
    mlp_bias: bool = False,
) -> dict[str, Tensor]:
    """Weights under Llama's keys, for a config with Llama's fields.

    Args:
        random: makes them.
        config: sizes, by the fields of a Llama config.
        groups: key-value heads.
        attention_bias: biases in the four projections of attention.
        mlp_bias: biases in the three of the feed-forward.
    """
    hidden, inner, words = (config[n] for n in ("hidden_size", "intermediate_size", "vocab_size"))
    keys = hidden // config["num_attention_heads"] * groups
    attention = {
        "q": (hidden, hidden),
        "k": (keys, hidden),
        "v": (keys, hidden),
        "o": (hidden,) * 2,
    }
    mlp = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    weights = {
        "model.embed_tokens.weight": random.embedding(words, hidden),
        "model.norm.weight": random.norm(hidden),
        "lm_head.weight": random.matrix(words, hidden),
    }
    for n in range(config["num_hidden_layers"]):
        at = f"model.layers.{n}"
        weights[f"{at}.input_layernorm.weight"] = random.norm(hidden)
        weights[f"{at}.post_attention_layernorm.weight"] = random.norm(hidden)
        for part, shapes, biased in (
            ("self_attn", attention, attention_bias),
            ("mlp", mlp, mlp_bias),
        ):
            for name, (rows, columns) in shapes.items():
                weights[f"{at}.{part}.{name}_proj.weight"] = random.matrix(rows, columns)
                if biased:
                    weights[f"{at}.{part}.{name}_proj.bias"] = random.bias(rows)
    return weights
