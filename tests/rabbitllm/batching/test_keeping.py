from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rabbitllm.batching.joining import LEAST_CHUNK, PASS_TOKENS
from rabbitllm.batching.keeping import STEP, max_seq_len_for
from rabbitllm.streaming.working import Work, read_geometry, working_bytes

CPU = torch.device("cpu")


@pytest.mark.parametrize(("rows", "tokens"), [(1, 10), (4, 700), (64, 640), (500, 1200)])
def test_what_is_kept_for_one_sequence_is_room_for_the_batch(
    build: Callable[..., Any], rows: int, tokens: int
) -> None:
    config = build("llama").config
    geometry = read_geometry(config)

    def needed(work: Work) -> int:
        return working_bytes(geometry, torch.float32, CPU, work)

    kept = max_seq_len_for(config, torch.float32, CPU, rows, tokens)
    width = min(tokens, max(LEAST_CHUNK, PASS_TOKENS["cpu"] // rows))
    batch = needed(Work(rows, width, tokens - width, logits=min(width, rows)))
    assert needed(Work(1, kept)) >= batch
    assert kept == STEP or needed(Work(1, kept - STEP)) < batch
