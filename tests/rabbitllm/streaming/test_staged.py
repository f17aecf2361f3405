from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedModel

from rabbitllm.prepare import prepare


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
