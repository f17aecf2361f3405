"""From what the user allows to bytes for weights: what computing itself needs comes off first."""

import logging

import torch

from rabbitllm.streaming.plan import Budget
from rabbitllm.streaming.working import CUDA_CONTEXT
from rabbitllm.utils.memory import available_host_memory, format_size, parse_size

logger = logging.getLogger(__name__)

DEFAULT_SEQ_LEN = 4096
"""Tokens that budgets keep room for when no `max_seq_len` is given."""
FREE_SHARE = 0.9
"""Fraction of the free memory that "auto" takes: others need to breathe."""


def total_budget(asked: int | str, device: torch.device) -> Budget:
    """Bytes for everything in one memory: a size, most of what is free for "auto", or "min".

    Raises:
        ValueError: not a size.
    """
    if asked == "min":
        return "min"
    if asked != "auto":
        return parse_size(asked)
    # A CUDA budget is for all that the process takes, of which its context is there already.
    context = CUDA_CONTEXT if device.type == "cuda" else 0
    return free_bytes(device) + context


def free_bytes(device: torch.device) -> int:
    """Most of what is free at this moment, and of what torch holds on a CUDA device unused."""
    if device.type == "cpu":
        return int(available_host_memory() * FREE_SHARE)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int((torch.cuda.mem_get_info(device)[0] + unused) * FREE_SHARE)


def weights_budget(total: Budget, minimum: int, working: int) -> Budget:
    """What is left of a budget for the weights.

    Args:
        total: bytes for everything, or "min".
        minimum: bytes that the weights need in any case.
        working: bytes for the cache and activations.
    """
    if total == "min":
        return "min"
    if minimum <= total < minimum + working:
        logger.warning(
            "A memory budget of %s leaves %s for the cache and activations, which may need %s. "
            "Raise it, or lower max_seq_len: longer prompts go through in chunks, a pass of the "
            "model each, or are refused.",
            format_size(total),
            format_size(total - minimum),
            format_size(working),
        )
    return max(min(minimum, total), total - working)
