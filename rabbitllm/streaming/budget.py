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


def device_budget(asked: int | str, device: torch.device, reserved: int) -> Budget:
    """Bytes for weights on a CUDA device; "auto" is what is free, less `reserved` and some."""
    if asked != "auto":
        return _explicit(asked)
    free, _ = torch.cuda.mem_get_info(device)
    return max(0, free - ACTIVATIONS - reserved)


def host_budget(asked: int | str, reserved: int) -> Budget:
    """Bytes for weights in host memory; "auto" is most of what is free, less `reserved`."""
    if asked != "auto":
        return _explicit(asked)
    return max(0, int(available_host_memory() * HOST_SHARE) - reserved)


def cache_bytes(config: Any, dtype: torch.dtype, max_seq_len: int | None) -> int:
    """Bytes of one sequence's cache: 2 x layers x kv heads x head_dim x tokens x itemsize."""
    tokens = max_seq_len or DEFAULT_SEQ_LEN
    fields = config.get_text_config().to_dict()  # attributes of some configs raise
    layers = fields.get("num_hidden_layers") or 1
    heads = fields.get("num_attention_heads") or 1
    head_dim = fields.get("head_dim") or fields.get("hidden_size", 0) // heads
    return int(
        2
        * layers
        * (fields.get("num_key_value_heads") or heads)
        * head_dim
        * tokens
        * dtype.itemsize
    )


def _explicit(asked: int | str) -> Budget:
    return "min" if asked == "min" else parse_size(asked)
