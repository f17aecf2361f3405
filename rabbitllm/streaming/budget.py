"""From what the user allows to bytes for weights: what computing itself needs comes off first."""

import logging
from typing import Any

import torch

from rabbitllm.streaming.plan import Budget
from rabbitllm.utils.memory import available_host_memory, format_size, parse_size

logger = logging.getLogger(__name__)

DEFAULT_SEQ_LEN = 4096
"""Tokens that budgets keep room for when no `max_seq_len` is given."""
CUDA_WORKSPACE = 128 << 20
"""Bytes that cuBLAS and the allocator's own rounding take on a CUDA device."""
CPU_WORKSPACE = 64 << 20
"""Bytes that the readers' buffers and the allocator's own rounding take on a CPU."""
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
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else available_host_memory()
    return int(free * FREE_SHARE)


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
            "Raise it, or lower max_seq_len.",
            format_size(total),
            format_size(total - minimum),
            format_size(working),
        )
    return max(min(minimum, total), total - working)


def working_bytes(
    config: Any,
    dtype: torch.dtype,
    max_seq_len: int | None,
    device: torch.device,
) -> int:
    """Bytes that one sequence of `max_seq_len` tokens needs beside the weights.

    That is the cache (2 x layers x kv heads x head_dim x tokens, if every layer keeps all), one
    layer's activations in a prefill (the MLP's two intermediates and about four hidden states), the
    logits of one position in float32, and a workspace.
    """
    tokens = max_seq_len or DEFAULT_SEQ_LEN
    text = config.get_text_config()
    hidden, heads = _field(text, "hidden_size"), _field(text, "num_attention_heads") or 1
    head_dim = _field(text, "head_dim") or hidden // heads
    kv_width = 2 * (_field(text, "num_key_value_heads") or heads) * head_dim
    intermediate = _field(text, "intermediate_size") or 4 * hidden
    per_token = (_field(text, "num_hidden_layers") or 1) * kv_width + 2 * intermediate + 4 * hidden
    workspace = CUDA_WORKSPACE if device.type == "cuda" else CPU_WORKSPACE
    return tokens * per_token * dtype.itemsize + 8 * _field(text, "vocab_size") + workspace


def _field(config: Any, name: str) -> int:
    """A number of the config, the largest if it holds one for each layer, 0 if it has none."""
    try:
        value = getattr(config, name)
    except (AttributeError, RuntimeError):  # some configs raise for what layers do not share
        return 0
    numbers = value if isinstance(value, list | tuple) else [value]
    return max((number for number in numbers if isinstance(number, int)), default=0)
