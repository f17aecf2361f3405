"""Weights are not read once in each pass, ahead of their turn, and no more of them than needed.

A pass asks for the bytes of each stage that streams, once; of a quantised checkpoint, for no more
than its file has of them. When a block's turn comes, its weights
are asked for already. What the system says that this process read is no more than that, and the
rows of the embedding that the tokens name.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.measuring.checks import Outcome, verdict
from harness.measuring.contract import blocks, text_blocks
from harness.measuring.subject import Subject
from harness.measuring.weights import load_weights, weight_files
from rabbitllm.streaming.weights import ALIGNMENT

PASSES = 3
ROUNDED = 2 * 4096
"""Bytes that reading a tensor by whole blocks of the disk can add to it."""
COUNTERS = Path("/proc/self/io")


def run(subject: Subject) -> Outcome:
    """Counts over a few passes of one token."""
    model = subject.streamed
    due = stage_bytes(model)
    token = subject.prompt[:, :1]
    kind = "bytes_from_disk" if subject.device.type == "cpu" else "bytes_to_device"
    late: list[str] = []
    with torch.no_grad():
        model(token, use_cache=False)  # the order of a pass is known from the last one
        handles = [
            handle
            for name, block in text_blocks(model).items()
            for handle in watched(name, block, lambda: asked(model, kind), late)
        ]
        before, read_before = asked(model, kind), bytes_read()
        try:
            for _ in range(PASSES):
                model(token, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    passed = (asked(model, kind) - before) / PASSES
    read = (bytes_read() - read_before) / PASSES
    plan, total = model.streaming_plan, sum(due.values())
    tensors = len(model.state_dict())
    most = total + ROUNDED * tensors + sum(plan.slot_sizes[model.device]) / PASSES
    figures = {"asked_per_pass": passed, "streamed_bytes": total, "read_per_pass": read}
    wrong = []
    if subject.cell.architecture.format:
        total = published_bytes(subject.folder, due)
        if not 0 < passed <= total:
            wrong.append(f"a pass asks for {passed:,.0f} bytes, the file has {total:,} of them")
    elif passed != total:
        wrong.append(f"a pass asks for {passed:,.0f} bytes, the stages that stream have {total:,}")
    if len(late) > PASSES:  # behind an outsize head, one block of a pass has no slot before
        blocks_late = ", ".join(sorted(set(late)))
        wrong.append(f"{blocks_late} began to load only when their turn had come")
    if subject.device.type == "cpu" and read > most:
        wrong.append(f"a pass reads {read:,.0f} bytes, no more than {most:,.0f} are needed")
    return verdict(not wrong, figures, "; ".join(wrong))


def stage_bytes(model: Any) -> dict[str, int]:
    """Stage -> the bytes of its buffer, of those that a text's pass runs and that stream."""
    mine = text_blocks(model)
    others = set(blocks(model)) - mine.keys()
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    used = set(model.get_decoder().modules()) | {embedding, head}
    tied = bool(model.config.get_text_config().tie_word_embeddings)
    sizes = {}
    for name in model.streaming_plan.streamed("disk", "host"):
        module = model.get_submodule(name)
        if name in others or module not in used or (module is embedding and not tied):
            continue
        sizes[name] = padded_bytes(module)
    return sizes


def padded_bytes(module: nn.Module) -> int:
    """The bytes of a module's weights, each on a boundary that kernels like."""
    sizes = (tensor.nbytes for tensor in module.state_dict().values())
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


def published_bytes(folder: Path, stages: Iterable[str]) -> int:
    """What a checkpoint's files hold of some stages, each tensor on a boundary as in a stage."""
    begins = tuple(f"{stage}." for stage in stages)
    sizes = [
        tensor.nbytes
        for file in weight_files(folder)
        for key, tensor in load_weights(file).items()
        if key.startswith(begins)
    ]
    return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)


def watched(name: str, block: nn.Module, count: Any, late: list[str]) -> list[Any]:
    """Hooks before and behind those of the engine; a block that loads between them is late."""
    before: list[int] = []

    def note(*_: object) -> None:
        before[:] = [count()]

    def compare(*_: object) -> None:
        if count() != before[0]:
            late.append(name)

    return [
        block.register_forward_pre_hook(note, prepend=True),
        block.register_forward_pre_hook(compare),
    ]


def asked(model: Any, kind: str) -> int:
    """Bytes that have begun to move since the model was loaded."""
    count: int = model.streaming_stats()[kind]
    return count


def bytes_read() -> int:
    """Bytes that this process has read by calls of the system, where it says so, else 0."""
    if not COUNTERS.exists():
        return 0
    fields = dict(line.split(": ") for line in COUNTERS.read_text("ascii").splitlines())
    return int(fields["rchar"])
