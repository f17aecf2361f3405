"""How what the CPU has computed gets back to a device that copies whole stages meanwhile.

A small copy waits behind those: all streams share one copy engine, first come, first served. So a
kernel fetches it, reading page-locked memory across the link by itself.
"""

import logging
import os
import weakref
from contextlib import ExitStack
from typing import Any

import torch
from accelerate.utils import send_to_device

from rabbitllm.streaming.buffers import pinned_buffer, readable_by_kernels

logger = logging.getLogger(__name__)

PAGE = 4 << 20
"""Bytes at most that a kernel fetches: more is few tokens' states no longer."""


class Landing:
    """Brings outputs from the host to where they are needed."""

    def __init__(self) -> None:
        self._pages: dict[torch.device, _Page | None] = {}

    def bring(self, output: Any, device: torch.device) -> Any:
        """The same on a device: a tensor, or whatever has tensors inside."""
        small = isinstance(output, torch.Tensor) and 0 < output.nbytes <= PAGE
        page = self._page(device) if small and device.type == "cuda" else None
        return page.bring(output) if page else send_to_device(output, device)

    def _page(self, device: torch.device) -> "_Page | None":
        if device not in self._pages:
            self._pages[device] = _page(device)
        return self._pages[device]


class _Page:
    """Page-locked memory that a device's kernels read.

    Args:
        page: uint8, on the host.
        there: the same memory, as a tensor of the device.
    """

    def __init__(self, page: torch.Tensor, there: torch.Tensor) -> None:
        self._page, self._there = page, there
        self._fetched = torch.cuda.Event()

    def bring(self, output: torch.Tensor) -> torch.Tensor:
        size = output.nbytes
        self._fetched.synchronize()  # what was there before has been fetched
        self._page[:size].view(output.dtype).view(output.shape).copy_(output)
        fetched = torch.bitwise_or(self._there[:size], 0)
        self._fetched.record(torch.cuda.current_stream(self._there.device))
        return fetched.view(output.dtype).view(output.shape)


class _Shared:
    """Host memory, as CUDA libraries hand arrays to one another.

    https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
    """

    def __init__(self, page: torch.Tensor) -> None:
        self.__cuda_array_interface__ = {
            "shape": (page.numel(),),
            "typestr": "|u1",
            "data": (page.data_ptr(), False),
            "version": 3,
        }


@torch.inference_mode(False)
def _page(device: torch.device) -> _Page | None:
    """Memory that the device's kernels read; None where they cannot."""
    if not readable_by_kernels():
        return None
    unlocking = ExitStack()
    with torch.cuda.device(device):
        page = pinned_buffer(PAGE, unlocking)
        try:
            there = torch.as_tensor(_Shared(page), device=device)
        except RuntimeError as error:  # torch takes no memory of the host
            logger.debug("Outputs of the CPU are copied to %s: %s", device, error)
            there = page
    if there.device != device or there.data_ptr() != page.data_ptr():
        unlocking.close()
        return None
    made = _Page(page, there)
    weakref.finalize(made, _unlock, made._fetched, unlocking, os.getpid())
    return made


def _unlock(fetched: torch.cuda.Event, unlocking: ExitStack, process: int) -> None:
    """Lets go of the memory once no kernel reads it any more; a forked process must not."""
    if os.getpid() == process:
        fetched.synchronize()
        unlocking.close()
