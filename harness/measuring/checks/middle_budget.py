"""With room for some of the layers, or for parts of one, answers differ from stock's.

Two budgets between the least and all: some stages are resident and others stream, and blocks are
split into their children.
"""

from __future__ import annotations

from typing import Any

from harness.measuring.checks import Outcome
from harness.measuring.contract import text_blocks
from harness.measuring.parity import TOLERANCE, close
from harness.measuring.subject import Subject
from rabbitllm.streaming.picking import pick_device
from rabbitllm.streaming.routed import find_routed
from rabbitllm.streaming.working import Work, read_geometry, working_bytes

TOKENS = 64
"""That the budgets keep room for."""
SHARES = (0.3, 0.7)
"""Of the model's weights that have room."""


def run(subject: Subject) -> Outcome:
    """Loads the model with each budget, and runs a forward."""
    if subject.device.type != "cpu":
        return Outcome("not-run", message="budgets of a GPU begin with what its kernels take")
    stock, small = subject.stock_uncached, subject.streamed
    device = pick_device(subject.cell.device)
    geometry = read_geometry(small.config)
    working = working_bytes(geometry, subject.dtype, device, Work(1, TOKENS))
    whole = sum(tensor.nbytes for tensor in small.state_dict().values())
    wrong, figures = [], {}
    for share in SHARES:
        budget = working + int(share * whole)
        model = subject.stream(host_memory=budget, max_seq_len=TOKENS)
        plan, names = model.streaming_plan, set(text_blocks(model))
        resident, moving = plan.resident(), plan.streamed("disk")
        split = [n for n in moving if any(n.startswith(f"{name}.") for name in names)]
        figures[f"resident_{share}"] = len(resident)
        figures[f"streamed_{share}"] = len(moving)
        figures[f"split_{share}"] = len(split)
        held = plan.device_bytes[model.device]
        if held > budget:
            wrong.append(f"{held:,} bytes are planned, {budget:,} are allowed")
        # Where few experts fit, tokens take turns, and matrices of another height are multiplied.
        turns = any(shelf.slots < most_rows(model) for shelf in plan.shelves.values())
        tolerance = max(subject.tolerance, TOLERANCE[subject.dtype] if turns else 0)
        if not close(subject.uncached(model), stock, tolerance):
            words = f"{len(resident)} stages resident, {len(moving)} streaming"
            wrong.append(f"other logits with {words}, {len(split)} of them parts of blocks")
    return Outcome("fail", figures, "; ".join(wrong)) if wrong else Outcome("pass", figures)


def most_rows(model: Any) -> int:
    """Experts of the module that has most of them."""
    counts = (max(found.rows.values()) for found in find_routed(model).values())
    return max(counts, default=0)
