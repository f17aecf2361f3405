"""Engines that bring other weights to the blocks than those of the checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rabbitllm import prepare
from rabbitllm.checkpoint.codecs.plain import Plain
from rabbitllm.streaming.devices import slot
from rabbitllm.streaming.pipeline import Pipeline
from tests.harness.measuring.mutations.breaking import (
    LOGITS,
    PARITY,
    Break,
    Mutation,
    Patch,
    around,
    arrives,
    exchanged,
    reading,
    recipes,
    rows_arrive,
)

NOT_THE_CHECKPOINTS = "A layer's weights are not the checkpoint's"
LEFT_OVER = "A layer computes with another layer's weights"
TAIL = 32
"""Bytes."""


def other_values(
    name: str, breaks: Break, architecture: str, weight: str, red: frozenset[str] = PARITY
) -> Mutation:
    """An engine of which the diagnosis finds the weight that is wrong."""
    message = rf"Diagnosis: .*{weight} holds other values than stock's"
    return Mutation(name, breaks, architecture, red, message, NOT_THE_CHECKPOINTS)


def not_read(original: Any, reader: Any, stage: Any, buffer: Tensor) -> None:
    if stage.name != "model.layers.2":  # its slot still holds an earlier layer
        original(reader, stage, buffer)


def read_once(patch: Patch) -> None:
    """From the second forward on a slot is taken to hold what it held in the first."""
    seen: set[str] = set()

    def read(original: Any, reader: Any, stage: Any, buffer: Tensor) -> None:
        if stage.name != "model.layers.2" or stage.name not in seen:
            original(reader, stage, buffer)
        seen.add(stage.name)

    reading(read)(patch)


def half_read(original: Any, reader: Any, stage: Any, buffer: Tensor) -> None:
    original(reader, stage, buffer)
    if stage.name == "model.layers.1":
        buffer[: stage.nbytes // 2] = 0


def prefetch_one_off(patch: Patch) -> None:
    following: dict[int, Any] = {}

    def init(original: Any, pipeline: Pipeline, *given: Any) -> None:
        original(pipeline, *given)
        (lane,) = pipeline._lanes
        order = lane.ring
        ring = order.ahead(len(order))
        following.update(zip(map(id, ring), ring[1:] + ring[:1], strict=True))

    def read(original: Any, reader: Any, stage: Any, buffer: Tensor) -> None:
        original(reader, following.get(id(stage), stage), buffer)

    around(Pipeline, "__init__", init)(patch)
    reading(read)(patch)


def one_block_off(_: Any, __: Plain, stored: Any, target: Any, ___: Any) -> None:
    target[:] = np.roll(stored[0], TAIL)


def last_block_lost(_: Any, __: Plain, stored: Any, target: Any, ___: Any) -> None:
    target[:-TAIL] = stored[0][:-TAIL]


def experts_swapped(by_name: dict[str, Any]) -> None:
    recipe = next(r for n, r in by_name.items() if n.endswith("layers.2.mlp.experts.down_proj"))
    first, second = (
        next(i for i, (key, _) in enumerate(recipe.sources) if f".experts.{n}." in key)
        for n in (3, 5)
    )
    sources = recipe.sources
    sources[first], sources[second] = sources[second], sources[first]


def last_expert_forgotten(by_name: dict[str, Any]) -> None:
    next(r for n, r in by_name.items() if n.endswith("experts.down_proj")).sources.pop()


WEIGHTS = (
    Mutation(
        "stage not read",
        reading(not_read),
        "llama",
        PARITY,
        r"Diagnosis: model\.layers\.2 ran with the weights of model\.layers\.0\.",
        LEFT_OVER,
    ),
    Mutation(
        "stage read once",
        read_once,
        "llama",
        PARITY,
        r"Diagnosis: model\.layers\.2 ran with the weights of model\.layers\.0\.",
        LEFT_OVER,
    ),
    Mutation(
        "layers swapped",
        exchanged(".layers.1.", ".layers.2."),
        "llama",
        PARITY,
        r"model\.layers\.1 and model\.layers\.2 ran with each other's weights",
        "Two layers are swapped",
    ),
    Mutation(
        "prefetch one off",
        prefetch_one_off,
        "llama",
        PARITY | {"tied_head"},
        r"each of 3 blocks ran with the weights of the one 1 behind it",
        "Every layer computes with its neighbour's weights",
    ),
    other_values(
        "stage half read", reading(half_read), "llama", r"layers\.1\.self_attn\.q_proj\.weight"
    ),
    other_values("keys for values", exchanged("k_proj", "v_proj"), "llama", "k_proj.weight"),
    other_values("gate for up", exchanged("gate_proj", "up_proj"), "llama", "gate_proj.weight"),
    other_values(
        "norms exchanged",
        exchanged("input_layernorm", "post_attention_layernorm"),
        "llama",
        "input_layernorm.weight",
    ),
    other_values(
        "matrix transposed",
        arrives("o_proj.weight", lambda weight: weight.copy_(weight.T.clone())),
        "llama",
        "o_proj.weight",
    ),
    other_values(
        "rounded to bfloat16",
        arrives("q_proj.weight", lambda weight: weight.copy_(weight.bfloat16())),
        "llama",
        "q_proj.weight",
        PARITY - {"golden"},  # whose checkpoint is bfloat16
    ),
    other_values(
        "rounded to float16",
        arrives("layers.3.mlp.down_proj.weight", lambda weight: weight.copy_(weight.half())),
        "llama",
        r"layers\.3\.mlp\.down_proj\.weight",
        LOGITS - {"golden"},
    ),
    other_values(
        "loaded as bfloat16",
        around(
            prepare,
            "dtypes_of",
            lambda original, *given: dict.fromkeys(original(*given), torch.bfloat16),
        ),
        "llama",
        "q_proj.weight",
        PARITY | {"tied_head"},
    ),
    other_values(
        "codec one block off",
        around(Plain, "decode", one_block_off),
        "llama",
        "q_proj.weight",
        PARITY | {"tied_head"},
    ),
    other_values(
        "codec without last block",
        around(Plain, "decode", last_block_lost),
        "llama",
        "q_proj.weight",
        PARITY | {"tied_head"},
    ),
    other_values(
        "padding forgotten",
        around(slot, "views", lambda original, stage, buffer: original(stage, buffer.roll(4))),
        "llama",
        "q_proj.weight",
        PARITY | {"tied_head", "residency"},
    ),
    other_values(
        "bias not read", arrives("q_proj.bias", torch.Tensor.zero_), "qwen2", "q_proj.bias"
    ),
    other_values(
        "norm's bias not read",
        arrives("input_layernorm.bias", torch.Tensor.zero_),
        "phi",
        "input_layernorm.bias",
    ),
    other_values(
        "norm of queries not read",
        arrives("q_norm.weight", lambda weight: weight.fill_(1)),
        "qwen3",
        "q_norm.weight",
    ),
    other_values(
        "fused rows shifted",
        arrives("qkv_proj.weight", lambda weight: weight.copy_(weight.roll(32, 0))),
        "phi3",
        "qkv_proj.weight",
    ),
    other_values(
        "router not read",
        arrives("mlp.gate.weight", torch.Tensor.zero_),
        "qwen3_moe",
        "gate.weight",
    ),
    other_values(
        "expert not read",
        rows_arrive("experts.down_proj", lambda row, weight: weight.mul_(row != 7)),
        "qwen3_moe",
        "experts.down_proj",
    ),
    other_values(
        "halves of experts swapped",
        rows_arrive(
            "layers.3.mlp.experts.gate_up_proj",
            lambda _, weight: weight.copy_(weight.roll(weight.shape[1] // 2, 1)),
        ),
        "qwen3_moe",
        r"layers\.3\.mlp\.experts\.gate_up_proj",
        LOGITS,
    ),
    Mutation(
        "experts swapped",
        recipes(experts_swapped),
        "qwen3_moe",
        PARITY,
        r"model\.layers\.2\.mlp\.experts\.down_proj has experts 3 and 5 exchanged",
        "Experts of a mixture are in the wrong order",
    ),
    Mutation(
        "expert forgotten",
        recipes(last_expert_forgotten),
        "qwen3_moe",
        frozenset({"split_and_load"}),
        r"experts\.down_proj, made of 7 tensors",
        "The map from checkpoint keys",
    ),
)
