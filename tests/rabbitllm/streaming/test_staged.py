from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from rabbitllm.prepare import prepare
from rabbitllm.streaming import placement


def test_blocks_whose_buffers_are_padded_split_to_the_end(
    build: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    # 72 x 2 bytes: a norm of this model is no multiple of the alignment.
    build("llama", torch.bfloat16, hidden_size=72, head_dim=18).save_pretrained(tmp_path)
    staged = prepare(tmp_path, None, torch.device("cpu"), "auto", "auto", False).staged
    counts = [len(staged.stages)]
    while (smaller := staged.with_largest_split()) is not None:
        staged = smaller
        counts.append(len(staged.stages))
        assert counts[-1] > counts[-2]
    assert len(counts) > 2
    assert "model.layers.3.self_attn.q_proj" in staged.sizes


def test_blocks_split_where_computing_needs_the_room(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "working_bytes", lambda *_: 1000)
    cuda = torch.device("cuda")  # placing is arithmetic: none has to be there
    staged = prepare(checkpoint(), None, torch.device("cpu"), "auto", "auto", False).staged
    least = staged.minimum_bytes
    whole, plan = placement.place(staged, cuda, least + 1000, "auto", 64)
    assert whole is staged
    assert plan.device_bytes[cuda] <= least
    split, plan = placement.place(staged, cuda, least + 999, "auto", 64)
    assert len(split.stages) > len(staged.stages)
    assert plan.device_bytes[cuda] <= least - 1


def test_on_cpu_blocks_split_where_smaller_slots_leave_less_to_read(
    checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(placement, "working_bytes", lambda *_: 1000)
    staged = prepare(checkpoint(), None, torch.device("cpu"), "auto", "auto", False).staged
    memory = staged.minimum_bytes + 1000

    def read_from_disk(device: str, host: int | str) -> int:
        placed, plan = placement.place(staged, torch.device(device), memory, host, 64)
        return sum(placed.sizes[name] for name in plan.streamed("disk"))

    whole = read_from_disk("cuda", "min")
    monkeypatch.setattr(placement, "total_budget", lambda *_: memory)
    assert 0 < read_from_disk("cpu", "auto") < whole
    everything = sum(staged.sizes.values()) + 1000 + 10_000
    monkeypatch.setattr(placement, "total_budget", lambda *_: everything)
    assert placement.place(staged, torch.device("cpu"), "auto", "auto", 64)[0] is staged
