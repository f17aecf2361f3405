"""From what the user allows to bytes: budgets for weights on the device and in host memory."""

from typing import Any, Literal

import torch

from rabbitllm.utils.memory import available_host_memory, parse_size

DEFAULT_SEQ_LEN = 4096
"""Tokens that "auto" keeps room for when no `max_seq_len` is given."""
ACTIVATIONS = 1 << 30
"""Bytes that "auto" leaves for activations, logits and the libraries' workspaces."""
HOST_SHARE = 0.9
"""Fraction of the free host memory that "auto" takes: other processes need to breathe."""

Budget = int | Literal["min"]


def device_budget(asked: int | str, device: torch.device, config: Any, dtype: torch.dtype, max_seq_len: int | None) -> Budget:
    """Bytes for weights on a CUDA device; "auto" is what is free less room for one sequence and activations."""
    if asked != "auto":
        return _explicit(asked)
    free, _ = torch.cuda.mem_get_info(device)
    return max(0, free - ACTIVATIONS - cache_bytes(config, dtype, max_seq_len))


def host_budget(asked: int | str, reserved: int) -> Budget:
    """Bytes for weights in host memory; "auto" is a share of what is free under the tightest limit, less `reserved`."""
    if asked != "auto":
        return _explicit(asked)
    return max(0, int(available_host_memory() * HOST_SHARE) - reserved)


def cache_bytes(config: Any, dtype: torch.dtype, max_seq_len: int | None) -> int:
    """Bytes of one sequence's keys and values, if every layer keeps all: 2 x layers x heads x head_dim x tokens x itemsize."""
    tokens = max_seq_len or DEFAULT_SEQ_LEN
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or getattr(text, "num_attention_heads", 1)
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // getattr(text, "num_attention_heads", 1)
    return int(2 * getattr(text, "num_hidden_layers", 1) * heads * head_dim * tokens * dtype.itemsize)


def _explicit(asked: int | str) -> Budget:
    return "min" if asked == "min" else parse_size(asked)
