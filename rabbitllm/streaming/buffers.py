"""Buffers for weights: allocated once, of the exact size, aligned."""

import mmap
import platform
import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import torch
from torch import nn

from rabbitllm.errors import BudgetError
from rabbitllm.streaming.weights import ALIGNMENT, Stage, Weight

HUGE_PAGE = 2 << 20
PORTABLE = 1
"""cudaHostRegisterPortable: page-locked for every device, not just the current one
(https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html)."""
MAPPED = 2
"""cudaHostRegisterMapped: kernels can read the memory."""


@dataclass(frozen=True)
class View:
    """A view of a buffer, whatever is in it.

    Attributes:
        dtype: of its elements.
        size: of each dimension, in elements.
        stride: of each dimension, in elements.
        offset: elements from the start of the buffer.
    """

    dtype: torch.dtype
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: torch.Tensor, buffer: torch.Tensor) -> "View":
        """That of a tensor in the same storage as the buffer, which is uint8."""
        start = buffer.storage_offset() // tensor.element_size()
        offset = int(tensor.storage_offset()) - start
        return cls(tensor.dtype, tensor.shape, tensor.stride(), offset)

    def copy_from(self, buffer: torch.Tensor) -> torch.Tensor:
        """Its values in memory of their own: uint8 [bytes], or more dimensions of it."""
        elements = buffer.view(-1).view(self.dtype)
        offset = elements.storage_offset() + self.offset
        return torch.as_strided(elements, self.size, self.stride, offset).clone()


def host_buffer(nbytes: int) -> torch.Tensor:
    """Uninitialised host memory: uint8 [nbytes], starting on an `ALIGNMENT` boundary."""
    raw = torch.empty(nbytes + ALIGNMENT, dtype=torch.uint8, device="cpu")
    start = -raw.data_ptr() % ALIGNMENT
    return raw[start : start + nbytes]


def _huge_pages(nbytes: int) -> torch.Tensor:
    """Host memory on huge pages where the system has them: quicker to lock, and to translate."""
    size = -(-nbytes // HUGE_PAGE) * HUGE_PAGE + HUGE_PAGE
    memory = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    start = -torch.frombuffer(memory, dtype=torch.uint8).data_ptr() % HUGE_PAGE
    # Not a slice: torch asks of a tensor's storage, from its first byte, whether it is page-locked.
    return torch.frombuffer(memory, dtype=torch.uint8, count=nbytes, offset=start)


def pinned_buffer(nbytes: int, unlocking: ExitStack) -> torch.Tensor:
    """Like `host_buffer`, page-locked: copies to a CUDA device run at the link's speed, alone.

    Registered by hand: torch's own pinned allocator rounds sizes up to a power of two. It must be
    unlocked before it goes.

    Args:
        nbytes: how much.
        unlocking: unlocks it when it closes.

    Raises:
        BudgetError: the system does not let so much memory be locked.
    """
    buffer = _huge_pages(nbytes)
    runtime = torch.cuda.cudart()
    code = int(runtime.cudaHostRegister(buffer.data_ptr(), nbytes, PORTABLE | MAPPED))
    if code:
        raise BudgetError(
            f"CUDA could not page-lock {nbytes:,} bytes (error {code}). Lower host_memory, or "
            "raise the limit (ulimit -l)."
        )
    unlocking.callback(runtime.cudaHostUnregister, buffer.data_ptr())
    return buffer


def readable_by_kernels() -> bool:
    """Whether kernels read page-locked memory by its address on the host.

    On other systems, Linux on Windows among them, it has another one for the device
    (cudaHostGetDevicePointer), which torch does not tell.
    """
    by_itself = sys.platform == "linux" and platform.machine() == "x86_64"
    on_windows = "microsoft" in platform.release().lower()
    return by_itself and not on_windows and torch.version.hip is None


@torch.inference_mode(False)
def views(stage: Stage, buffer: torch.Tensor) -> list[torch.Tensor]:
    """The stage's weights, in the order of its weights, as views of a buffer laid out for it."""
    return [
        as_held(
            weight,
            buffer[weight.offset : weight.offset + weight.nbytes]
            .view(weight.dtype)
            .view(weight.shape),
        )
        for weight in stage.weights
    ]


@torch.inference_mode(False)
def as_held(weight: Weight, values: torch.Tensor) -> torch.Tensor:
    """The values as modules hold that weight: a parameter, or a buffer as it is."""
    if weight.kind == "_buffers":
        return values
    return nn.Parameter(values, requires_grad=False)
