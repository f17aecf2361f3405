"""Page-locked memory that a device's kernels write to and read across the link."""

import logging
import os
import weakref
from contextlib import ExitStack

import torch

from rabbitllm.streaming.buffers import pinned_buffer, readable_by_kernels

logger = logging.getLogger(__name__)

PAGE = 4 << 20
"""Bytes at most that a kernel carries: more is few tokens' states no longer."""


class Page:
    """Page-locked memory that a device's kernels read and write.

    Args:
        page: uint8, on the host.
        there: the same memory, as a tensor of the device.
    """

    def __init__(self, page: torch.Tensor, there: torch.Tensor) -> None:
        self._page, self._there = page, there
        self._carried = torch.cuda.Event()

    def take(self, given: torch.Tensor) -> torch.Tensor:
        """An input of the device, on the host, once it is there."""
        flat, size = given.contiguous().view(-1).view(torch.uint8), given.nbytes
        self._carried.synchronize()  # what was there before has been fetched
        torch.bitwise_or(flat, 0, out=self._there[:size])
        self._carried.record(torch.cuda.current_stream(self._there.device))
        self._carried.synchronize()
        return self._page[:size].view(given.dtype).view(given.shape).clone()

    def bring(self, output: torch.Tensor) -> torch.Tensor:
        """An output of the host, on the device."""
        return self.fetch(self.place(output.shape, output.dtype).copy_(output))

    def place(self, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Where on the host such an output goes, once what was there before has been fetched."""
        self._carried.synchronize()
        return self._page[: shape.numel() * dtype.itemsize].view(dtype).view(shape)

    def fetch(self, place: torch.Tensor) -> torch.Tensor:
        """What is in a place when the device gets here, on the device."""
        fetched = torch.bitwise_or(self._there[: place.nbytes], 0)
        self._carried.record(torch.cuda.current_stream(self._there.device))
        return fetched.view(place.dtype).view(place.shape)


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
def page_of(device: torch.device) -> Page | None:
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
    made = Page(page, there)
    weakref.finalize(made, _unlock, made._carried, unlocking, os.getpid())
    return made


def _unlock(carried: torch.cuda.Event, unlocking: ExitStack, process: int) -> None:
    """Lets go of the memory once no kernel needs it any more; a forked process must not."""
    if os.getpid() == process:
        carried.synchronize()
        unlocking.close()
