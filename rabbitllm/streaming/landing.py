"""How what the CPU computes gets there, and back to a device that copies whole stages meanwhile.

A small copy waits for those, in either direction (318 us to the host beside stages on their way to
an H100, 12 us without). So a kernel writes to page-locked memory across the link, or reads it.
"""

import logging
import os
import weakref
from contextlib import ExitStack
from typing import Any

import torch
from accelerate.utils import recursively_apply, send_to_device

from rabbitllm.streaming.buffers import pinned_buffer, readable_by_kernels
from rabbitllm.streaming.picking import HOST

logger = logging.getLogger(__name__)

PAGE = 4 << 20
"""Bytes at most that a kernel carries: more is few tokens' states no longer."""


class Landing:
    """Takes inputs to the host, and brings outputs from there to where they are needed."""

    def __init__(self) -> None:
        self._pages: dict[torch.device, _Page | None] = {}

    def take(self, given: Any) -> Any:
        """The same on the host, once it is there: a tensor, or whatever has tensors inside."""
        return recursively_apply(self._take, given)

    def bring(self, output: Any, device: torch.device) -> Any:
        """The same on a device: a tensor, or whatever has tensors inside."""
        page = self._page_for(output, device) if isinstance(output, torch.Tensor) else None
        return page.bring(output) if page else send_to_device(output, device)

    def _take(self, given: torch.Tensor) -> torch.Tensor:
        page = self._page_for(given, given.device)
        return page.take(given) if page else given.to(HOST)

    def _page_for(self, moved: torch.Tensor, device: torch.device) -> "_Page | None":
        small = 0 < moved.nbytes <= PAGE
        return self._page(device) if small and device.type == "cuda" else None

    def _page(self, device: torch.device) -> "_Page | None":
        if device not in self._pages:
            self._pages[device] = _page(device)
        return self._pages[device]


class _Page:
    """Page-locked memory that a device's kernels read and write.

    Args:
        page: uint8, on the host.
        there: the same memory, as a tensor of the device.
    """

    def __init__(self, page: torch.Tensor, there: torch.Tensor) -> None:
        self._page, self._there = page, there
        self._carried = torch.cuda.Event()

    def take(self, given: torch.Tensor) -> torch.Tensor:
        flat, size = given.contiguous().view(-1).view(torch.uint8), given.nbytes
        self._carried.synchronize()  # what was there before has been fetched
        torch.bitwise_or(flat, 0, out=self._there[:size])
        self._carried.record(torch.cuda.current_stream(self._there.device))
        self._carried.synchronize()
        return self._page[:size].view(given.dtype).view(given.shape).clone()

    def bring(self, output: torch.Tensor) -> torch.Tensor:
        size = output.nbytes
        self._carried.synchronize()  # what was there before has been fetched
        self._page[:size].view(output.dtype).view(output.shape).copy_(output)
        fetched = torch.bitwise_or(self._there[:size], 0)
        self._carried.record(torch.cuda.current_stream(self._there.device))
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
    weakref.finalize(made, _unlock, made._carried, unlocking, os.getpid())
    return made


def _unlock(carried: torch.cuda.Event, unlocking: ExitStack, process: int) -> None:
    """Lets go of the memory once no kernel needs it any more; a forked process must not."""
    if os.getpid() == process:
        carried.synchronize()
        unlocking.close()
