"""What two calls of a module must have in common to launch the same kernels on the same memory."""

from itertools import chain
from operator import is_
from typing import NamedTuple

import torch
from torch import nn

from rabbitllm.streaming.binding import streams
from rabbitllm.streaming.entry import is_replaced

STOCK = ("transformers.", "torch.nn.")
"""Where modules are from that go by their settings alone: an adapter's may be switched off."""


class Marks(NamedTuple):
    """What two calls must have in common to be the same.

    Attributes:
        equal: settings, addresses.
        same: objects.
    """

    equal: list[object]
    same: list[object]

    def like(self, other: "Marks | None") -> bool:
        """Whether a call with the other ones would be the same."""
        return (
            other is not None
            and self.equal == other.equal
            and len(self.same) == len(other.same)
            and all(map(is_, self.same, other.same))
        )


def marks_of(module: nn.Module) -> Marks | None:
    """What a module and those inside go by: their attributes and weights, and where these are.

    With the settings of torch that choose kernels. None if others see or change what they do.
    """
    if _seen_by_others():
        return None
    marks, parts = Marks([*_settings()], []), [module]
    for part in parts:
        held = vars(part)
        # The module's own forward is what asks; it would keep itself alive.
        marks.same.extend(
            each for name, each in held.items() if name != "forward" or part is not module
        )
        for weight in chain(held["_parameters"].values(), held["_buffers"].values()):
            marks.same.append(weight)
            if weight is not None and not streams(weight):
                marks.equal.extend((weight.data_ptr(), weight.dtype, weight.stride()))
        if part.training or (part is not module and not _is_stock(part)):
            return None
        parts += [each for each in held["_modules"].values() if each is not None]
    return marks


def _is_stock(part: nn.Module) -> bool:
    """Whether a module inside is one of stock's, and nobody sees its calls or changes them."""
    seen = part._forward_hooks or part._forward_pre_hooks or is_replaced(part)
    return type(part).__module__.startswith(STOCK) and not seen


def _settings() -> tuple[object, ...]:
    """Of torch, by which it chooses kernels."""
    products = torch.backends.cuda.matmul
    return (
        products.allow_fp16_reduced_precision_reduction,
        products.allow_bf16_reduced_precision_reduction,
        torch.are_deterministic_algorithms_enabled(),
    )


def _seen_by_others() -> bool:
    """Whether something sees all calls of modules or all operations, or computes otherwise."""
    return (
        torch.is_grad_enabled()
        or torch.is_autocast_enabled()
        or torch.nn.modules.module._has_any_global_hook()
        or torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
    )
