"""More weights are in memory than the plan says, or some stay after the forward.

Hooks of the check's own count, whenever a block begins and ends, the blocks that hold weights and
the bytes of all bound parameters. After the forward, everything that the engine keeps is counted,
wherever it is referenced from. Over further passes the memory of the whole process, as the system
counts it, hardly grows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from harness.measuring.checks import Outcome, verdict
from harness.measuring.contract import text_blocks
from harness.measuring.memory import anonymous_bytes, live_storages
from harness.measuring.subject import Subject
from rabbitllm.streaming.routed import find_routed

SLACK = 16 * 1024
"""Bytes beyond the plan that are no weights: alignment, position tables."""
READING = 16 << 20
"""Most bytes that all threads keep to decode quantised weights in, of the workspace."""

PASSES = 4
"""Over which the process may not grow by half of what is kept if each leaves a copy."""
NOISE = 1 << 19
"""Bytes by which it grows as it likes."""


class Watch:
    """Counts what is bound while a model runs."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self.model = model
        self.blocks = [model.get_submodule(name) for name in names]
        self.most_blocks = 0
        self.most_bytes = 0
        self.looks = 0
        self.unbound: set[str] = set()

    def look(self, running: str | None = None) -> None:
        """Counts now; `running` names the block whose forward is about to begin."""
        self.looks += 1
        self.most_blocks = max(self.most_blocks, sum(holds_weights(block) for block in self.blocks))
        self.most_bytes = max(self.most_bytes, bound_bytes(self.model))
        if running is not None and any(
            parameter.is_meta for parameter in asked_whole(self.model.get_submodule(running))
        ):
            self.unbound.add(running)


def run(subject: Subject) -> Outcome:
    """Watches one forward."""
    model, plan = subject.streamed, subject.streamed.streaming_plan
    planned = plan.device_bytes[model.device]
    names = list(text_blocks(model))
    watch = Watch(model, names)
    with hooked(model, names, watch), torch.no_grad():
        model(subject.prompt, use_cache=False)
    left = [name for name in names if holds_weights(model.get_submodule(name))]
    left = [name for name in left if name not in plan.resident()]
    new = live_storages()
    kept = sum(size for address, size in new.items() if address not in subject.storages_before)
    buffers = sum(buffer.nbytes for buffer in model.buffers() if not buffer.is_meta)
    grown, streamed = growth(subject), sum(p.nbytes for p in model.parameters() if p.is_meta)
    beside = buffers + SLACK + (READING if subject.cell.architecture.format else 0)
    wrong = []
    if watch.looks < 2 * len(names):
        wrong.append(f"blocks were seen {watch.looks} times, not {2 * len(names)}")
    if watch.unbound:
        wrong.append(f"{', '.join(sorted(watch.unbound))} ran with weights missing")
    if watch.most_blocks > 1:  # one runs at a time; what arrives is not bound yet
        wrong.append(f"{watch.most_blocks} blocks held weights at once, and one at a time runs")
    if watch.most_bytes > planned:
        wrong.append(f"{watch.most_bytes:,} bytes were bound, {planned:,} are planned")
    if left:
        wrong.append(f"after the forward {', '.join(left)} still hold weights")
    if subject.device.type == "cpu" and kept > planned + beside:
        wrong.append(f"after the forward {kept:,} bytes are held, {planned:,} are planned")
    if subject.device.type == "cpu" and grown > PASSES / 2 * streamed + NOISE:
        wrong.append(f"in {PASSES} passes the process grew by {grown:,} bytes")
    figures = {
        "most_blocks": watch.most_blocks,
        "slots": plan.slots,
        "most_bytes": watch.most_bytes,
        "kept_bytes": kept,
        "planned_bytes": planned,
        "grown_bytes": grown,
    }
    return verdict(not wrong, figures, "; ".join(wrong))


@torch.no_grad()
def growth(subject: Subject) -> int:
    """Bytes by which the process grows over some passes of one token."""
    token = subject.prompt[:, :1]
    subject.streamed(token, use_cache=False)  # the first may need more than others
    before = anonymous_bytes()
    for _ in range(PASSES):
        subject.streamed(token, use_cache=False)
    return anonymous_bytes() - before


class hooked:  # noqa: N801  # a context manager, named like one
    """Registers a watch's hooks on blocks, for the time of a `with`."""

    def __init__(self, model: nn.Module, names: list[str], watch: Watch) -> None:
        self.handles: list[Any] = []
        for name in names:
            block = model.get_submodule(name)
            self.handles.append(
                block.register_forward_pre_hook(lambda *_, name=name: watch.look(running=name))
            )
            self.handles.append(block.register_forward_hook(lambda *_: watch.look()))

    def __enter__(self) -> None:
        """Nothing is left to do."""

    def __exit__(self, *_: object) -> None:
        """Takes the hooks away."""
        for handle in self.handles:
            handle.remove()


def holds_weights(module: nn.Module) -> bool:
    """Whether any parameter of the module is real, but for routers, which stay."""
    routed = find_routed(module)
    experts = [module.get_submodule(path) for path in routed]
    rows = {count for found in routed.values() for count in found.rows.values()}
    return any(not parameter.is_meta for each in experts for parameter in each.parameters()) or any(
        not parameter.is_meta and len(parameter) not in rows for parameter in asked_whole(module)
    )


def asked_whole(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that it needs all rows of: not those of experts."""
    experts = {
        parameter
        for path in find_routed(module)
        for parameter in module.get_submodule(path).parameters()
    }
    return [parameter for parameter in module.parameters() if parameter not in experts]


def bound_bytes(model: nn.Module) -> int:
    """The bytes of the distinct real parameters of a model."""
    real = {p.data_ptr(): p.nbytes for p in model.parameters() if not p.is_meta}
    return sum(real.values())
