"""What this machine offers."""

import importlib.metadata

import torch

from rabbitllm.errors import first_line

MIN_CAPABILITY = (8, 0)
"""FlashAttention 2 needs Ampere or newer: https://github.com/Dao-AILab/flash-attention#nvidia-cuda-support."""


def is_flash_attention_available(device: torch.device | str | None = None) -> tuple[bool, str]:
    """Whether FlashAttention 2 runs on `device` (None: the current GPU); its name, or why not."""
    try:
        importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return False, "the flash-attn package is not installed"
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    device = torch.device(device or "cuda")
    if device.type != "cuda":
        return False, f"the model runs on {device}, not on CUDA"
    name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        return False, f"{name} has compute capability {capability[0]}.{capability[1]}, below 8.0"
    try:
        from flash_attn import flash_attn_func

        query = torch.zeros(1, 2, 1, 64, dtype=torch.float16, device=device)
        flash_attn_func(query, query, query)
        torch.cuda.synchronize(device)
    except (ImportError, RuntimeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        return False, f"flash-attn does not work here: {reason}"
    return True, name
