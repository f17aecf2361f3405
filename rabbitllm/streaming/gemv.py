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
        threads: of numba's that it uses.
    """

    def __init__(self, loops: ModuleType, threads: int = 1) -> None:
        super().__init__()
        self._loops, self._threads = loops, threads
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
        product = torch.empty(len(weight), dtype=torch.float32)
        vector = input.detach().reshape(-1).clone()  # it may begin within a word
        matrix = _words(weight.detach())
        self._loops.multiply(matrix, _words(vector), product.numpy(), self._threads)
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


def _words(pairs: torch.Tensor) -> "np.ndarray[Any, np.dtype[np.uint32]]":
    """Two elements of bfloat16 as one word, in the same memory."""
    return pairs.view(torch.int32).numpy().view(np.uint32)


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

    threads = min(threads, vars(config)["NUMBA_NUM_THREADS"])  # it has no more
    set_num_threads(threads)
    return QuickProducts(loops, threads)


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

        matrix = np.zeros((1, 1), np.uint32)
        gemv_loops.multiply(matrix, matrix[0], np.zeros(1, np.float32), 1)  # which compiles it
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
