"""Weights are not read once in each pass, ahead of their turn, and no more of them than needed.

A pass asks for the bytes of each stage that streams, once; of a quantised checkpoint, for no more
than its file has of them. When a block's turn comes, its weights
are asked for already. What the system says that this process read is no more than that, and the
rows of the embedding that the tokens name. Of a mixture's experts no more come than tokens are sent
to, and those that were guessed.
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
from rabbitllm.streaming.routed import find_routed
from rabbitllm.streaming.weights import ALIGNMENT

PASSES = 3
ROUNDED = 2 * 4096
"""Bytes that reading a tensor by whole blocks of the disk can add to it."""
BETWEEN = 2 * (256 << 10)
"""Bytes that are read along between an expert's matrices, where little lies between them."""
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
            for handle in watched(name, block, lambda: asked_whole(model, kind), late)
        ]
        before, read_before, rows_before = asked_whole(model, kind), bytes_read(), rows_moved(model)
        try:
            for _ in range(PASSES):
                model(token, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
    rows = (rows_moved(model) - rows_before) / PASSES
    passed = (asked_whole(model, kind) - before) / PASSES
    read = (bytes_read() - read_before) / PASSES
    plan, total = model.streaming_plan, sum(due.values())
    tensors = len(model.state_dict())
    by_rows = rows * (row_bytes(model) + BETWEEN)
    most = total + by_rows + ROUNDED * tensors + sum(plan.slot_sizes[model.device]) / PASSES
    figures = {"asked_per_pass": passed, "streamed_bytes": total, "read_per_pass": read}
    if rows:
        figures["experts_per_pass"] = rows
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
    """The bytes of a module's weights, each on a boundary that kernels like.

    Without those of experts, and of what beside them has a row for each: a router.
    """
    routed = {name: found.rows for name, found in find_routed(module).items()}
    kept = (
        tensor
        for name, tensor in module.state_dict().items()
        if not any(
            name.startswith(f"{path}.")
            or (name.startswith(parent(path)) and len(tensor) in counts.values())
            for path, counts in routed.items()
        )
    )
    return sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in kept)


def parent(path: str) -> str:
    """What the names of all in the module around this one begin with."""
    above = path.rpartition(".")[0]
    return f"{above}." if above else ""


def row_bytes(model: Any) -> int:
    """The bytes of an expert, each weight on a boundary that kernels like; 0 if there is none."""
    for name, found in find_routed(model).items():
        module = model.get_submodule(name)
        sizes = [module.get_parameter(key).nbytes // rows for key, rows in found.rows.items()]
        return sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)
    return 0


def rows_moved(model: Any) -> int:
    """Experts that have begun to move since the model was loaded."""
    stats = model.streaming_stats()
    return int(stats["rows_brought"] + stats["rows_guessed"])


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


def asked_whole(model: Any, kind: str) -> int:
    """Bytes that have begun to move since the model was loaded, without those of experts."""
    stats = model.streaming_stats()
    return int(stats[kind] - stats["bytes_of_rows"])


def bytes_read() -> int:
    """Bytes that this process has read by calls of the system, where it says so, else 0."""
    if not COUNTERS.exists():
        return 0
    fields = dict(line.split(": ") for line in COUNTERS.read_text("ascii").splitlines())
    return int(fields["rchar"])
