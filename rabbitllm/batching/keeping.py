"""How much room a model has to keep for a batch, in the measure that loading takes: tokens."""

import torch
from transformers import PretrainedConfig

from rabbitllm.batching.joining import LEAST_CHUNK, PASS_TOKENS
from rabbitllm.streaming.working import Work, read_geometry, working_bytes

STEP = 64
"""Tokens that what is kept is a multiple of."""


def max_seq_len_for(
    config: PretrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    rows: int,
    tokens: int,
    offloaded: bool = False,
) -> int:
    """The `max_seq_len` of `AutoModel.from_pretrained` that leaves room for a batch.

    A batch takes less than one sequence of as many tokens: it computes few of them at a time.

    Args:
        config: of the model.
        dtype: of its cache.
        device: where it runs.
        rows: sequences that are to share passes.
        tokens: of each, prompt and answer.
        offloaded: their cache lies in the host's memory.
    """
    geometry = read_geometry(config)
    width = min(tokens, max(LEAST_CHUNK, PASS_TOKENS[device.type] // rows))
    work = Work(rows, width, tokens - width, logits=min(width, rows), offloaded=offloaded)
    needed = working_bytes(geometry, dtype, device, work)
    least, above = 0, 1
    while working_bytes(geometry, dtype, device, Work(1, above * STEP)) < needed:
        least, above = above, above * 2
    while above - least > 1:
        middle = (least + above) // 2
        enough = working_bytes(geometry, dtype, device, Work(1, middle * STEP)) >= needed
        least, above = (least, middle) if enough else (middle, above)
    return above * STEP
