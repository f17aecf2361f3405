"""Linear layers of one token on a CPU, by products that are as quick as the memory.

Only there to be quick: where numba is not installed, or has no threads that several callers may
share, torch's own products do.
"""

import logging
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode
from typing_extensions import override

logger = logging.getLogger(__name__)

LEAST = 1 << 20
"""Elements of a matrix: smaller ones are in the CPU's caches, and torch's product starts sooner."""


class QuickProducts(TorchFunctionMode):
    """Has linear layers of bfloat16 multiply one token by a compiled loop, in this thread.

    Products are rounded once, from sums in float32 of another order than torch's.

    Args:
        loops: `rabbitllm.streaming.gemv_loops`.
    """

    def __init__(self, loops: ModuleType) -> None:
        super().__init__()
        self._loops = loops

    @override
    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or MappingProxyType({})
        if function is linear and suits(*args, **kwargs):
            return self._multiply(*args, **kwargs)
        return function(*args, **kwargs)

    def _multiply(
        self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        vector = input.reshape(-1).float()
        product = torch.empty(len(weight), dtype=torch.float32)
        matrix = weight.detach().view(torch.int32).numpy().view(np.uint32)
        halves = (vector[first::2].contiguous().numpy() for first in range(2))
        self._loops.multiply(matrix, *halves, product.numpy())
        if bias is not None:
            product += bias
        return product.to(weight.dtype).view(*input.shape[:-1], len(weight))


def suits(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> bool:
    """Whether that is one token's product with a plain matrix of bfloat16, and a large one."""
    return (
        type(input) is torch.Tensor
        and type(weight) in (torch.Tensor, torch.nn.Parameter)
        and input.dtype == weight.dtype == torch.bfloat16
        and input.device == weight.device == torch.device("cpu")
        and weight.dim() == 2
        and input.numel() == input.shape[-1] == weight.shape[1]
        and weight.shape[1] % 2 == 0
        and weight.numel() >= LEAST
        and weight.is_contiguous()
        and weight.data_ptr() % 4 == 0
        and not torch.is_grad_enabled()
    )


def quick_products(threads: int) -> QuickProducts | None:
    """Those of the thread that calls this; None where torch's own have to do.

    Args:
        threads: of the CPU that it uses from now on.
    """
    loops = quick_loops()
    if not loops:
        return None
    from numba import config, set_num_threads

    set_num_threads(min(threads, vars(config)["NUMBA_NUM_THREADS"]))
    return QuickProducts(loops)


@cache
def quick_loops() -> ModuleType | None:
    """What multiplies; None where torch has to."""
    if sys.byteorder != "little" or not find_spec("numba"):
        return None
    try:
        from numba.np.ufunc import threading_layer

        from rabbitllm.streaming import gemv_loops

        two = np.zeros((1, 1), np.uint32), *np.zeros((3, 1), np.float32)
        gemv_loops.multiply(*two)  # which compiles it
        layer = threading_layer()
    # It does not know this numpy, its library is broken, or has no threads.
    except (ImportError, OSError, AttributeError, ValueError) as error:
        logger.warning("numba cannot be used, so the CPU computes more slowly: %s", error)
        return None
    if layer == "workqueue":  # it ends the process where two threads call it
        logger.info("numba has neither OpenMP nor TBB, so torch multiplies on the CPU")
        return None
    return gemv_loops
