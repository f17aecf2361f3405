"""Engines that are wrong only where a model is used in some other way than with few ids at once.

With ids at the ends of a vocabulary, in half precision, compressed, interrupted, with some room, or
from a checkpoint that changes.
"""

from __future__ import annotations

import mmap
from typing import Any

import torch
from torch import Tensor

from rabbitllm import auto, prepare
from rabbitllm.checkpoint import store
from rabbitllm.checkpoint.codecs.lossless import Lossless
from rabbitllm.checkpoint.reader import Reader
from rabbitllm.model import StreamedModel
from rabbitllm.streaming.devices.cpu import CpuTransfer
from rabbitllm.streaming.lanes import Lanes
from rabbitllm.streaming.pipeline import Pipeline
from rabbitllm.streaming.ring import Ring
from tests.harness.measuring.mutations.breaking import (
    Break,
    Mutation,
    Patch,
    around,
    built,
    called_with,
)

EMBEDDING = "Head and embedding are not what"
HELD = r"after the forward [\d,]+ bytes are held"
KEPT = "Weights stay in memory"
LOSSLESS = "Compressed weights are not"
TRAFFIC = "Weights travel otherwise"


def seen(
    name: str,
    breaks: Break,
    check: str,
    message: str,
    architecture: str = "llama",
    cause: str = "",
) -> Mutation:
    """An engine that one check is there to see."""
    checks = ("split_and_load", check)
    return Mutation(name, breaks, architecture, frozenset({check}), message, cause, checks=checks)


def row_lost(which: int) -> Break:
    """Have the row of one id come as zeros; a negative one counts from the last."""

    def read(original: Any, reader: Reader, name: str, ids: Tensor) -> Tensor:
        rows: Tensor = original(reader, name, ids)
        rows[ids == which % reader.entries[name].shape[0]] = 0
        return rows

    return around(Reader, "read_rows", read)


def few_rows(original: Any, reader: Reader, name: str, ids: Tensor) -> Tensor:
    rows: Tensor = original(reader, name, ids)
    rows[256:] = 0
    return rows


def whole_read(original: Any, reader: Reader, name: str, ids: Tensor) -> Tensor:
    reader.read(name)
    rows: Tensor = original(reader, name, ids)
    return rows


def first_rows(kwargs: dict[str, Any]) -> dict[str, Any]:
    ids = kwargs["input_ids"].clone()
    ids[4:] = ids[:1]
    return {"input_ids": ids}


def hoarding(copy: Any) -> Break:
    """Have copies of what runs kept, as `copy` makes them."""

    def breaks(patch: Patch) -> None:
        copies: list[Any] = []

        def release(original: Any, pipeline: Pipeline, stage: Any) -> None:
            buffer = pipeline._running[stage].slot.buffer[: stage.nbytes]
            copies.append(copy(buffer))
            original(pipeline, stage)

        around(Pipeline, "release", release)(patch)

    return breaks


def on_map(buffer: Tensor) -> mmap.mmap:
    memory = mmap.mmap(-1, buffer.numel())
    memory.write(buffer.numpy().tobytes())
    return memory


def release_dropped(original: Any, pipeline: Pipeline, stage: Any) -> None:
    if stage.name != "model.layers.1":
        original(pipeline, stage)


def reversed_ring(original: Any, ring: Ring, order: list[Any]) -> None:
    original(ring, order[::-1])


def without_mask(original: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
    kwargs.pop("attention_mask", None)
    return original(model, *args, **kwargs)


def states_refused(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {"output_hidden_states": False}


def last_bit(original: Any, codec: Lossless, stored: Any, target: Any, scratch: Any) -> None:
    original(codec, stored, target, scratch)
    target.view("uint16")[-1] ^= 1


def outliers_forgotten(*_: object) -> None:
    return None


def one_name(original: Any, identity: dict[str, Any]) -> str:
    return str(original({k: v for k, v in identity.items() if k != "files"}))


def believed(original: Any, layers: Any, groups: Any) -> bool:
    return bool((layers.folder / store.DESCRIPTION).exists())


def stale(patch: Patch) -> None:
    around(store, "store_name", one_name)(patch)
    around(store.LayerStore, "_is_described", believed)(patch)


def resident_lost(original: Any, transfer: Any, stage: Any, in_place: bool) -> Any:
    tensors = original(transfer, stage, in_place)
    if stage.name.startswith("model.layers.") and not stage.pinned:
        tensors = [torch.nn.Parameter(torch.zeros_like(t), False) for t in tensors]
    return tensors


IDS = r"the embedding gives other values for id {}"

DIMENSIONS = (
    seen("row of id 0 lost", row_lost(0), "every_id", IDS.format("0"), cause=EMBEDDING),
    seen("row of the last id lost", row_lost(-1), "every_id", IDS.format("255"), cause=EMBEDDING),
    seen(
        "row of the last of many ids lost",
        row_lost(-1),
        "every_id",
        IDS.format("65999"),
        "llama-wide",
        EMBEDDING,
    ),
    seen(
        "256 rows at most",
        around(Reader, "read_rows", few_rows),
        "every_id",
        IDS.format(r"6\d+, .* and \d+ more"),
        "llama-wide",
        EMBEDDING,
    ),
    seen(
        "4 rows of a batch at most",
        called_with(first_rows),
        "every_id",
        IDS.format("0, 1, 2, 3 and"),
        cause=EMBEDDING,
    ),
    seen(
        "whole embedding read",
        around(Reader, "read_rows", whole_read),
        "traffic",
        r"a pass reads [\d,]+ bytes, no more than",
        "llama-wide",
        TRAFFIC,
    ),
    seen("copies kept as bits", hoarding(torch.clone), "residency", HELD, cause=KEPT),
    seen(
        "copies kept as arrays",
        hoarding(lambda buffer: buffer.numpy().copy()),
        "residency",
        HELD,
        cause=KEPT,
    ),
    seen(
        "copies kept as strings",
        hoarding(lambda buffer: buffer.numpy().tobytes()),
        "residency",
        HELD,
        cause=KEPT,
    ),
    seen(
        "copies kept out of sight",
        hoarding(on_map),
        "residency",
        r"in 4 passes the process grew by [\d,]+ bytes",
        cause=KEPT,
    ),
    seen(
        "one release dropped",
        around(Pipeline, "release", release_dropped),
        "residency",
        "2 blocks held weights at once",
        cause=KEPT,
    ),
    seen(
        "interrupt not settled",
        around(Pipeline, "_settle", lambda *_: None),
        "interrupt",
        "is already running",
        cause="A forward that was cut off",
    ),
    seen(
        "no prefetch",
        around(Lanes, "prefetch", lambda *_: None),
        "traffic",
        "began to load only when their turn had come",
        cause=TRAFFIC,
    ),
    seen(
        "ring reversed",
        around(Ring, "learn", reversed_ring),
        "traffic",
        r"a pass asks for 2,\d+,\d+ bytes, the stages that stream have \d+,\d+",
        cause=TRAFFIC,
    ),
    seen(
        "order never learned",
        around(Lanes, "learn", lambda *_: None),
        "traffic",
        r"a pass asks for 1,\d+,\d+ bytes, the stages that stream have 1,\d+,\d+",
        "gemma3-multimodal",  # whose vision tower no text runs
        TRAFFIC,
    ),
    seen(
        "mask dropped by generate",
        around(StreamedModel, "generate", without_mask),
        "left_padded",
        "same tokens: False",
    ),
    seen(
        "hidden states refused",
        called_with(states_refused),
        "hidden_states",
        "number of hidden states",
        cause="Hidden states or attentions",
    ),
    seen(
        "generation settings ignored",
        around(auto, "load_generation_config", lambda *_: None),
        "generation_settings",
        r"generation_config\.repetition_penalty is .*, stock's is 1\.3",
        cause="The config, or the generation config",
    ),
    seen(
        "compression ignored",
        around(auto, "accept_compression", lambda *_: None),
        "lossless",
        r"a pass reads ([\d,]+) bytes, uncompressed they are \1",
        "llama-wide",
        LOSSLESS,
    ),
    seen(
        "last bit decoded wrongly",
        around(Lossless, "decode", last_bit),
        "lossless",
        "other logits than stock's",
        "llama-wide",
        LOSSLESS,
    ),
    seen(
        "outliers not decoded",
        around(Lossless, "_put_outliers", outliers_forgotten),
        "lossless",
        "other logits than stock's",
        "llama-wide",
        LOSSLESS,
    ),
    seen(
        "store kept",
        stale,
        "changed_checkpoint",
        "answers are still the old ones",
        cause="A layer store was used",
    ),
    seen(
        "head_dim believed",
        around(prepare, "repair_head_dim", lambda *_: False),
        "contradicting_config",
        r"k_norm\.weight has shape \[32\] in the checkpoint, but the config",
        "qwen3",
        "head_dim is wrong",
    ),
    seen(
        "resident layers not read",
        around(CpuTransfer, "resident", resident_lost),
        "middle_budget",
        r"other logits with \d+ stages resident",
        "llama2",
        "What stays in memory",
    ),
    Mutation(
        "dropout active where no config has any",
        built(torch.nn.Module.train),
        "llama",
        frozenset({"split_and_load", "golden"}),  # whose config has some
        "dropout is active",
        "The model is in training mode",
    ),
)
