"""What torch should do by itself, and which torch makes each workaround needless.

keep_rows_single    a prefill hands the head the last of its hidden states, a view [1, 1, hidden]
that still has the strides of the whole. A linear layer takes that for a
batch, and on a CPU copies the whole weight to multiply it: 467 MB for the
head of a 1.5B model, of memory that could hold layers. The same row with
the strides of one gives the same bits without a copy, in bfloat16; in
float16 it does not, and float32 is not copied. Needed up to torch 2.13,
the newest: no release ends it yet.
"""

from typing import Any

import torch
from torch import nn


def keep_rows_single(module: nn.Linear) -> None:
    """Has a layer take a single row for what it is."""
    module.register_forward_pre_hook(_with_own_strides)


def _with_own_strides(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    if not arguments or not isinstance(arguments[0], torch.Tensor):
        return arguments
    hidden, *others = arguments
    if hidden.numel() != module.in_features or hidden.dtype != torch.bfloat16:
        return arguments
    return hidden.reshape(-1).view(hidden.shape), *others
