"""Engines that bring something else outside of the blocks, or of what is no parameter."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rabbitllm.checkpoint.reader import Reader
from rabbitllm.streaming import engine
from rabbitllm.streaming.devices.cpu import CpuTransfer
from tests.harness.measuring.mutations.breaking import (
    LOGITS,
    PARITY,
    Break,
    Mutation,
    around,
    arrives,
    built,
)

HEAD = "Head and embedding are not what"


def other_embeddings(name: str, breaks: Break) -> Mutation:
    """An engine that gives the first block other hidden states; the golden table is resident."""
    red = (PARITY | {"tied_head"}) - {"golden"}
    message = r"Diagnosis: model\.layers\.0 was called with other 0 than stock's"
    return Mutation(name, breaks, "llama", red, message, "The first layer gets other hidden")


def resident(change: Any) -> Break:
    """Have what stays on the device arrive as `change` makes it."""

    def load(original: Any, *given: Any) -> list[Tensor]:
        return [nn.Parameter(change(values), False) for values in original(*given)]

    return around(CpuTransfer, "resident", load)


def rows_one_off(original: Any, reader: Reader, name: str, ids: Tensor) -> Tensor:
    return original(reader, name, (ids + 1).clamp(max=reader.entries[name].shape[0] - 1))


def last_row_lost(original: Any, reader: Reader, name: str, ids: Tensor) -> Tensor:
    rows: Tensor = original(reader, name, ids)
    rows[-1] = 0
    return rows


def tie_lost(model: Any) -> None:
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.clone(), requires_grad=False)
    model.all_tied_weights_keys = {}


def buffers(change: Any) -> Break:
    """Have buffers, by their names, changed where they are put."""

    def put(original: Any, model: nn.Module, *rest: Any) -> None:
        original(model, *rest)
        for name, buffer in model.named_buffers():
            change(name, buffer)

    return around(engine, "_place_buffers", put)


def round_frequencies(name: str, buffer: Tensor) -> None:
    if name.endswith("inv_freq"):
        buffer.copy_(buffer.bfloat16())


def lose_frequencies(name: str, buffer: Tensor) -> None:
    if name.endswith("inv_freq"):
        buffer.zero_()


def round_scale(name: str, buffer: Tensor) -> None:
    if name.endswith("embed_scale"):
        buffer.copy_(buffer * 1.004)  # half a step of bfloat16


def global_base(model: Any) -> None:
    rope = model.model.rotary_emb
    rope.sliding_attention_inv_freq.copy_(rope.full_attention_inv_freq)


OUTSIDE = (
    Mutation(
        "tie lost",
        built(tie_lost),
        "llama-tied",
        frozenset({"split_and_load"}),
        r"tensors are missing from the checkpoint",
        "The checkpoint holds no head",
    ),
    Mutation(
        "head not read",
        arrives("lm_head.weight", torch.Tensor.zero_),
        "llama",
        LOGITS | {"tied_head"},
        "what follows them does not",
        HEAD,
    ),
    Mutation(
        "head's last rows not read",
        arrives("lm_head.weight", lambda weight: weight[-16:].zero_()),
        "llama",
        LOGITS | {"tied_head"},
        "what follows them does not",
        HEAD,
    ),
    Mutation(
        "last norm not read",
        resident(torch.ones_like),
        "llama",
        LOGITS,
        "what follows them does not",
        HEAD,
    ),
    Mutation(
        "last norm rounded",
        resident(lambda values: values.bfloat16().float()),
        "llama",
        LOGITS - {"golden"},
        "what follows them does not",
        HEAD,
    ),
    other_embeddings("rows one off", around(Reader, "read_rows", rows_one_off)),
    other_embeddings("last of the rows lost", around(Reader, "read_rows", last_row_lost)),
    other_embeddings(
        "rows in another order",
        around(Reader, "read_rows", lambda original, *given: original(*given).flip(0)),
    ),
    Mutation(
        "frequencies rounded",
        buffers(round_frequencies),
        "llama",
        PARITY,
        r"inv_freq differs from stock's, rounded to bfloat16",
        "The rotary frequencies were rounded",
    ),
    Mutation(
        "frequencies lost",
        buffers(lose_frequencies),
        "llama",
        PARITY,
        "inv_freq differs from stock's",
        "A buffer is not stock's",
    ),
    Mutation(
        "frequencies of other layers",
        built(global_base),
        "gemma3",
        PARITY,
        "sliding_attention_inv_freq differs from stock's",
        "A buffer is not stock's",
    ),
    Mutation(
        "embedding's scale rounded",
        buffers(round_scale),
        "gemma3",
        PARITY | {"tied_head"},
        "embed_scale differs from stock's",
        "A buffer is not stock's",
    ),
    Mutation(
        "buffer of a stage not read",
        arrives("e_score_correction_bias", torch.Tensor.zero_),
        "deepseek_v3",
        PARITY,
        "e_score_correction_bias differs from stock's",
        "A buffer is not stock's",
    ),
)
