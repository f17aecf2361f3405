"""A word in the host's memory that a CUDA stream waits for, and that any thread of the host sets.

What is launched behind the wait stays where it is until then, and launching goes on. The thread
that sets the word makes no CUDA call: it needs neither a context nor a lock of the driver's.
"""

import ctypes
import logging
import os
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import cast

import torch

from rabbitllm.streaming.buffers import pinned_buffer, readable_by_kernels

logger = logging.getLogger(__name__)

DRIVER = "libcuda.so.1"
AT_LEAST = 0
"""CU_STREAM_WAIT_VALUE_GEQ: until the word is at least so much, counted round
(https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEMOP.html)."""
WORD = 4
"""Bytes of it."""
ROUND = 1 << 32
"""Numbers of a word: behind the last comes 0."""

WaitValue = Callable[[int, int, int, int], int]
"""cuStreamWaitValue32: stream, address, number, flags -> an error, or 0."""


class Doorbell:
    """One of a device.

    Numbers are rung in the order in which they are waited for, each one more than the one before.

    Args:
        device: whose streams wait.
        word: uint8 [4], page-locked, at the same address for the device.
        wait_value: has a stream wait for it.
    """

    def __init__(self, device: torch.device, word: torch.Tensor, wait_value: WaitValue) -> None:
        self.device = device
        self._address = word.data_ptr()
        self._memory = word  # which lives as long as its address is in use
        self._word = ctypes.c_uint32.from_address(self._address)
        self._word.value = 0
        self._wait_value = wait_value
        self.waited = torch.cuda.Event()

    def wait(self, number: int) -> None:
        """Whatever is launched in the current stream from now on runs once that has been rung.

        Raises:
            RuntimeError: the driver refuses.
        """
        stream = torch.cuda.current_stream(self.device)
        code = self._wait_value(stream.cuda_stream, self._address, number % ROUND, AT_LEAST)
        if code:
            raise RuntimeError(f"{self.device} cannot wait for a word of the host's: error {code}.")
        self.waited.record(stream)

    def ring(self, number: int) -> None:
        """Lets go on what waits for that number or an earlier one.

        A processor of the x86 family makes stores seen in the order in which they were made: what
        has been written before is there when the word is. No other gets here, see
        `readable_by_kernels`.
        """
        self._word.value = number % ROUND


def doorbell_of(device: torch.device) -> Doorbell | None:
    """One that has been tried; None where the device, its driver or the system has none."""
    if device.type != "cuda" or not readable_by_kernels():
        return None
    wait_value = _wait_value()
    if wait_value is None:
        return None
    unlocking = ExitStack()
    with torch.cuda.device(device):
        bell = Doorbell(device, pinned_buffer(WORD, unlocking), wait_value)
    # By a thread of its own: no interrupt may fall between the wait and the word.
    with ThreadPoolExecutor(1) as trying:
        works = trying.submit(_works, bell).result()
    if not works:
        unlocking.close()
        return None
    weakref.finalize(bell, _unlock, bell.waited, unlocking, os.getpid())
    return bell


def _wait_value() -> WaitValue | None:
    """The driver's function; None without a driver that has it."""
    try:
        found = ctypes.CDLL(DRIVER).cuStreamWaitValue32_v2
    except (OSError, AttributeError) as error:
        logger.debug("Streams cannot wait for a word of the host's: %s", error)
        return None
    found.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint32, ctypes.c_uint)
    return cast(WaitValue, found)


def _works(bell: Doorbell) -> bool:
    """Whether a stream stands still until the word is set, and no longer."""
    with torch.cuda.stream(torch.cuda.Stream(bell.device)):
        try:
            bell.wait(1)
        except RuntimeError as error:
            logger.debug("%s", error)
            return False
        stood_still = not bell.waited.query()
        bell.ring(1)
        bell.waited.synchronize()
        bell.ring(0)  # as before: the first number that is waited for is 1
        return stood_still


def _unlock(waited: torch.cuda.Event, unlocking: ExitStack, process: int) -> None:
    """Lets go of the memory once no stream reads it; a forked process must not."""
    if os.getpid() == process:
        waited.synchronize()
        unlocking.close()
