from __future__ import annotations

import psutil
import torch

from rabbitllm.checkpoint.reader import Reader
from rabbitllm.streaming.devices import CpuTransfer
from rabbitllm.streaming.meter import Meter

MIB = 1 << 20


def test_a_slot_has_taken_its_memory_before_anything_loads() -> None:
    transfer = CpuTransfer(Reader({}), Meter(), torch.device("cpu"))
    before = psutil.Process().memory_info().rss
    slot = transfer.slot(200 * MIB, staging=0)
    assert psutil.Process().memory_info().rss - before >= 195 * MIB
    assert slot.buffer.numel() == 200 * MIB
    transfer.close()
