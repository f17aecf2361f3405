"""Engines that keep, forget or mistake what is in memory or in the store."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rabbitllm.checkpoint import store
from rabbitllm.streaming import engine, pipeline
from rabbitllm.streaming.pipeline import Pipeline
from tests.harness.measuring.mutations.breaking import (
    RUNNING,
    Mutation,
    Patch,
    around,
)

UNLOADED = "A module ran"
KEPT = "Weights stay in memory"


def buffers_not_bound(_: Any, where: Any, tensors: Any) -> None:
    for owners, tensor in zip(where, tensors, strict=True):
        for held, attribute in owners:
            if attribute != "e_score_correction_bias":
                held[attribute] = tensor


def kept(original: Any, where: Any, tensors: Any) -> None:
    if not any(tensor.is_meta for tensor in tensors):
        original(where, tensors)


def leaking(patch: Patch) -> None:
    copies: list[Tensor] = []

    def release(original: Any, lanes: Pipeline, stage: Any) -> None:
        copies.extend(map(torch.clone, lanes._running[stage].slot.tensors_of(stage)))
        original(lanes, stage)

    around(Pipeline, "release", release)(patch)


RESIDENCY = (
    Mutation(
        "buffer of a stage not bound",
        around(engine, "bind", buffers_not_bound),
        "deepseek_v3",
        RUNNING,
        "e_score_correction_bias is used while it is not in memory",
        UNLOADED,
    ),
    Mutation(
        "weights not bound",
        around(pipeline, "bind", lambda *_: None),
        "llama",
        RUNNING,
        "is used while it is not in memory",
        UNLOADED,
    ),
    Mutation(
        "weights kept",
        around(pipeline, "bind", kept),
        "llama",
        frozenset({"residency"}),
        r"after the forward model\.layers\.0, .* still hold weights",
        KEPT,
    ),
    Mutation(
        "copies kept",
        leaking,
        "llama",
        frozenset({"residency"}),
        r"after the forward [\d,]+ bytes are held",
        KEPT,
    ),
    Mutation(
        "slots never free",
        around(Pipeline, "release", lambda *_: None),
        "llama",
        RUNNING,
        "No slot is free",
        "Slots do not become free",
    ),
    Mutation(
        "store of another checkpoint",
        around(store, "store_name", lambda *_: "one"),
        "llama",
        frozenset({"changed_checkpoint"}),
        "answers are still the old ones",
        "A layer store was used",
        checks=("split_and_load", "changed_checkpoint"),
    ),
)
