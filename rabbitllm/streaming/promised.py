"""Outputs that a device's kernels are launched with before the CPU has computed them."""

import logging
from typing import Protocol

import torch

from rabbitllm.errors import BudgetError
from rabbitllm.streaming.devices.doorbell import doorbell_of
from rabbitllm.streaming.page import Page, page_of

logger = logging.getLogger(__name__)


class Bell(Protocol):
    """Such as a `rabbitllm.streaming.devices.doorbell.Doorbell`."""

    def wait(self, number: int) -> None:
        """Has the device stand still until that number is rung."""

    def ring(self, number: int) -> None:
        """Has it go on; without a call to the device's driver."""


class Promise:
    """One output. Whoever makes it keeps it or breaks it, else the device stands still for ever.

    Args:
        number: which of them.
        place: on the host, where the output goes.
        page: that the place is in.
        bell: that the device waits for.
    """

    def __init__(self, number: int, place: torch.Tensor, page: Page, bell: Bell) -> None:
        self._number, self._place, self._page, self._bell = number, place, page, bell

    def fetch(self) -> torch.Tensor:
        """The output, on the device: what is launched behind it waits for it there."""
        self._bell.wait(self._number)
        return self._page.fetch(self._place)

    def keep(self, output: torch.Tensor) -> None:
        """Puts the output where it is waited for.

        Raises:
            RuntimeError: it is not of the form that was promised.
        """
        if (output.shape, output.dtype) != (self._place.shape, self._place.dtype):
            raise RuntimeError(
                f"it gives {output.dtype} {tuple(output.shape)}, where the same input gave "
                f"{self._place.dtype} {tuple(self._place.shape)} before"
            )
        self._place.copy_(output)

    def end(self) -> None:
        """Has the device go on, with the output or, where it was not kept, with what was there."""
        self._bell.ring(self._number)


class Promises:
    """Those of one device.

    An output stays in its page until it has been fetched, which takes what was launched before it:
    with two pages in turn, nobody waits for that.

    Args:
        pages: two or more.
        bell: the device's.
    """

    def __init__(self, pages: list[Page], bell: Bell) -> None:
        self._pages, self._bell = pages, bell
        self._number = 0

    def promise(self, shape: torch.Size, dtype: torch.dtype) -> Promise:
        """The next one. They are ended in the order in which they were made.

        Args:
            shape: of the output; it takes no more than a page.
            dtype: of the output.
        """
        self._number += 1
        page = self._pages[self._number % len(self._pages)]
        return Promise(self._number, page.place(shape, dtype), page, self._bell)


def promises_of(device: torch.device) -> Promises | None:
    """Those of a device; None where what is launched cannot wait for the host."""
    try:
        bell = doorbell_of(device)
        pages = [page for _ in range(2) if bell and (page := page_of(device))]
    except BudgetError as error:  # no more memory may be locked: all goes on without
        logger.debug("%s cannot wait for the CPU: %s", device, error)
        return None
    return Promises(pages, bell) if bell and len(pages) == 2 else None
