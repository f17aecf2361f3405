"""Linear layers of one token on a CPU, by products that are as quick as the memory.

Only there to be quick: where numba is not installed, or has no threads that several callers may
share, torch's own products do.
"""

import logging
import os
import sys
import threading
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
        self._process = os.getpid()

    @override
    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or MappingProxyType({})
        # A forked process ends if it calls OpenMP's threads of its parent.
        if function is linear and os.getpid() == self._process and suits(*args, **kwargs):
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
        _plain(input)
        and _plain(weight)
        and (bias is None or (_plain(bias) and bias.shape == weight.shape[:1]))
        and weight.dim() == 2
        and input.numel() == input.shape[-1] == weight.shape[1]
        and weight.numel() >= LEAST
        and weight.is_contiguous()
        # Two elements are read as one word.
        and weight.shape[1] % 2 == weight.storage_offset() % 2 == weight.data_ptr() % 4 == 0
        and not torch.is_grad_enabled()
    )


def _plain(tensor: torch.Tensor) -> bool:
    kind, where = (tensor.dtype, tensor.layout), tensor.device.type
    ours = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_neg()
    return ours and kind == (torch.bfloat16, torch.strided) and where == "cpu" and tensor.dim() > 0


def quick_products(threads: int) -> QuickProducts | None:
    """Those of the thread that calls this; None where torch's own have to do.

    Args:
        threads: of the CPU that it uses from now on.
    """
    loops = quick_loops()
    if not loops:
        return None
    from numba import config, set_num_threads

    set_num_threads(min(threads, vars(config)["NUMBA_NUM_THREADS"]))  # it has no more
    return QuickProducts(loops)


def quick_loops() -> ModuleType | None:
    """What multiplies; None where torch has to."""
    with _FINDING:  # threads must not find out at once whether they may be at it at once
        return _loops()


_FINDING = threading.Lock()


@cache
def _loops() -> ModuleType | None:
    if sys.byteorder != "little":
        return None
    try:
        if not find_spec("numba"):
            return None
        from numba.core.errors import NumbaError
    except (ImportError, OSError, AttributeError, ValueError) as error:
        _say(error)
        return None
    mine = torch.get_num_threads()
    try:
        from numba.np.ufunc import threading_layer

        from rabbitllm.streaming import gemv_loops

        matrix, vectors = np.zeros((1, 1), np.uint32), np.zeros((3, 1), np.float32)
        gemv_loops.multiply(matrix, *vectors)  # which compiles it
        layer = threading_layer()
    except (ImportError, OSError, AttributeError, ValueError, RuntimeError, NumbaError) as error:
        _say(error)
        return None
    finally:
        torch.set_num_threads(mine)  # numba's OpenMP has set it for torch's, too
    if layer == "workqueue":  # it ends the process where two threads call it
        logger.info("numba has neither OpenMP nor TBB, so torch multiplies on the CPU")
        return None
    return gemv_loops


def _say(error: Exception) -> None:
    """It does not know this numpy or CPU, its library is broken, it has no threads or is off."""
    logger.warning("numba cannot be used, so the CPU computes more slowly: %s", error)
