"""With compression="lossless" the bits are not stock's, or as many bytes are read as without.

In bfloat16, which is what it encodes.
"""

from __future__ import annotations

from typing import Any

import torch

from harness.measuring.checks import Outcome, verdict
from harness.measuring.checks.traffic import stage_bytes
from harness.measuring.parity import close
from harness.measuring.subject import Subject, reference_side


def run(subject: Subject) -> Outcome:
    """Compares a forward, and counts the bytes of another one."""
    with reference_side():
        due = subject.uncached(subject.stock(dtype="bfloat16"))
    model = subject.stream(dtype="bfloat16", compression="lossless")
    ours = subject.uncached(model)
    read, plain = read_by_a_pass(subject, model), sum(stage_bytes(model).values())
    wrong = []
    if not close(ours, due, subject.tolerance):
        wrong.append("other logits than stock's")
    if not read < plain:
        wrong.append(f"a pass reads {read:,} bytes, uncompressed they are {plain:,}")
    return verdict(not wrong, {"bytes_per_pass": read, "plain_bytes": plain}, "; ".join(wrong))


@torch.no_grad()
def read_by_a_pass(subject: Subject, model: Any) -> int:
    """Bytes that a pass asks of the disk."""
    before = model.streaming_stats()["bytes_from_disk"]
    model(subject.prompt[:, :1], use_cache=False)
    count: int = model.streaming_stats()["bytes_from_disk"] - before
    return count
