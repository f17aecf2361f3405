"""Whether a CUDA device can look rows up here: kernels are tried before they are relied on."""

import logging
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from subprocess import SubprocessError

import torch

from rabbitllm.errors import summary
from rabbitllm.streaming.buffers import readable_by_kernels
from rabbitllm.streaming.devices.encoded import alike
from rabbitllm.streaming.devices.row_work import NEVER, Found, Home, Kernels, Known, bring

logger = logging.getLogger(__name__)


def row_kernels(memory: torch.Tensor, homes: Sequence[Home]) -> Kernels | None:
    """By which a CUDA device looks rows up; None where it cannot, or there is no Triton.

    Args:
        memory: as for `Lookup`.
        homes: the rows: not all that is encoded can be decoded row by row.
    """
    if not (readable_by_kernels() and find_spec("triton")):
        return None
    try:
        from triton.errors import TritonError

        from rabbitllm.streaming.devices import row_kernels as kernels

        if not all(kernels.decodes(home.encoded) for home in homes):
            return None
        try:
            try_out(kernels, memory, homes)
        except TritonError as error:  # of the compiler, and of what the device has not enough of
            raise RuntimeError(str(error)) from error
    except (ImportError, OSError, RuntimeError, SubprocessError) as error:
        logger.warning(
            "Triton does not work here (%s), so the host waits for the routes of each layer.",
            summary(error.__cause__ or error),
        )
        return None
    return kernels


def try_out(kernels: Kernels, memory: torch.Tensor, homes: Iterable[Home]) -> None:
    """Launches once what rows of each kind need, to no effect; raises what that raises.

    Args:
        kernels: what is tried.
        memory: as for `Lookup`.
        homes: the rows; those that are stored alike are tried once.
    """
    one, two = (memory.new_zeros(size, dtype=torch.int64) for size in (1, 2))
    found = Found(*(one.clone() for _ in range(4)))
    known = Known(two, two - 1, two.clone(), two + 1, two + NEVER, two.clone(), one[0].clone())
    kernels.look_up(one + 1, known, found)  # of none
    tried: list[Home] = []
    for home in homes:
        if not any(alike([home.encoded, other.encoded]) for other in tried):
            tried.append(home)
            bring(kernels, memory, home, found)
