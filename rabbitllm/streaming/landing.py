"""How what the CPU computes gets there, and back to a device that copies whole stages meanwhile.

A small copy waits for those, in either direction (318 us to the host beside stages on their way to
an H100, 12 us without). So a kernel writes to page-locked memory across the link, or reads it.
"""

from typing import Any

import torch
from accelerate.utils import recursively_apply, send_to_device

from rabbitllm.streaming.page import PAGE, Page, page_of
from rabbitllm.streaming.picking import HOST


class Landing:
    """Takes inputs to the host, and brings outputs from there to where they are needed."""

    def __init__(self) -> None:
        self._pages: dict[torch.device, Page | None] = {}

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

    def _page_for(self, moved: torch.Tensor, device: torch.device) -> "Page | None":
        small = 0 < moved.nbytes <= PAGE
        return self._page(device) if small and device.type == "cuda" else None

    def _page(self, device: torch.device) -> "Page | None":
        if device not in self._pages:
            self._pages[device] = page_of(device)
        return self._pages[device]
