"""Decoding on a CUDA device: by kernels of Triton's where that is installed, else by torch.

What is encoded crosses the link through a small ring of buffers: while one portion is decoded, the
next is copied. Nothing waits on the host.
"""

from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec

import torch

from rabbitllm.checkpoint.codecs.codec import Codec
from rabbitllm.streaming.devices.encoded import Encoded, Portion

BUFFERS = 3
"""In the ring: one is filled, one is decoded, one is on its way from the one to the other."""
COPY = 64 << 20
"""Bytes of one asynchronous copy. All streams share one copy engine, first come, first served: what
the model itself copies between two tokens (ids, positions) must not wait behind a whole stage.
Copies of a quarter of this cost 1% of the link (H100, PCIe 5)."""
BY_TORCH = 16
"""Bytes that torch's operations take for each encoded one, in between."""
Decode = Callable[[Codec, Sequence[torch.Tensor], torch.Tensor], None]


class Decoder:
    """Copies stages to a device and decodes them there, on two streams of its own.

    Args:
        device: a CUDA device.
        room: bytes of the largest portion that is encoded; 0 if none is.
        allocate: memory there: bytes -> uint8 [bytes].
    """

    def __init__(
        self, device: torch.device, room: int, allocate: Callable[[int], torch.Tensor]
    ) -> None:
        self.copying = torch.cuda.Stream(device)
        self._decoding = torch.cuda.Stream(device) if room else self.copying
        self._buffers = [allocate(room) for _ in range(BUFFERS if room else 0)]
        self._copied = [torch.cuda.Event() for _ in self._buffers]
        self._decoded = [torch.cuda.Event() for _ in self._buffers]
        self._next, self._last = 0, torch.cuda.Event()
        # torch hands out memory that kernels launched before may still use: in its own stream they
        # come first.
        for event in self._decoded:
            event.record(torch.cuda.current_stream(device))

    def bring(
        self,
        encoded: Encoded,
        source: torch.Tensor,
        target: torch.Tensor,
        free: torch.cuda.Event | None,
        done: torch.cuda.Event,
    ) -> None:
        """Enqueues what fills a buffer on the device with a stage's weights.

        Args:
            encoded: how the stage lies in `source`.
            source: uint8, pinned.
            target: uint8 on the device.
            free: when `target` may be written to.
            done: to be recorded when it is filled.
        """
        if free is not None:
            self.copying.wait_event(free)
            self._decoding.wait_event(free)
        for portion in encoded.portions:
            if portion.pieces:
                self._decode(portion, source, target)
            else:
                self._copy(source[portion.source], target[portion.target])
        if self._decoding is not self.copying:
            self._last.record(self.copying)
            self._decoding.wait_event(self._last)
        done.record(self._decoding)

    def _copy(self, source: torch.Tensor, target: torch.Tensor) -> None:
        with torch.cuda.stream(self.copying):
            for begin in range(0, len(source), COPY):
                part = slice(begin, begin + COPY)
                target[part].copy_(source[part], non_blocking=True)

    def _decode(self, portion: Portion, source: torch.Tensor, target: torch.Tensor) -> None:
        number = self._next
        self._next = (number + 1) % len(self._buffers)
        stored, buffer = source[portion.source], self._buffers[number]
        self.copying.wait_event(self._decoded[number])
        self._copy(stored, buffer[: len(stored)])
        self._copied[number].record(self.copying)
        self._decoding.wait_event(self._copied[number])
        with torch.cuda.stream(self._decoding):
            for piece in portion.pieces:
                sources = [buffer[place] for place in piece.sources]
                decode_of(type(piece.codec))(piece.codec, sources, target[piece.target])
        self._decoded[number].record(self._decoding)

    def synchronize(self) -> None:
        """Waits for all that was enqueued."""
        self.copying.synchronize()
        self._decoding.synchronize()


def decoding_bytes(room: int) -> int:
    """Bytes that a decoder takes on its device.

    Args:
        room: as for `Decoder`.
    """
    return (BUFFERS if find_spec("triton") else BUFFERS + BY_TORCH) * room


@cache
def decode_of(kind: type[Codec]) -> Decode:
    """What decodes on a CUDA device what a codec stores."""
    if find_spec("triton"):
        from rabbitllm.checkpoint.codecs.kernels import KERNELS

        if kind in KERNELS:
            return KERNELS[kind]
    return _by_torch


def _by_torch(codec: Codec, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
    codec.decode_on(stored, target)
