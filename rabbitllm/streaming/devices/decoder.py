"""Decoding on a CUDA device: by kernels of Triton's where that is installed, else by torch.

What is encoded crosses the link through a small ring of buffers: while one portion is decoded, the
next is copied. Nothing waits on the host.
"""

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import cache, partial
from importlib.util import find_spec
from typing import NamedTuple

import torch

from rabbitllm.checkpoint.codecs.codec import Codec
from rabbitllm.streaming.devices.encoded import Encoded, Portion
from rabbitllm.streaming.devices.recorder import Recorder

BUFFERS = 3
"""In the ring: one is filled, one is decoded, one is on its way from the one to the other."""
COPY = 64 << 20
"""Bytes of one asynchronous copy. All streams share one copy engine, first come, first served: what
the model itself copies between two tokens (ids, positions) must not wait behind a whole stage.
Copies of a quarter of this cost 1% of the link (H100, PCIe 5)."""
BY_TORCH = 16
"""Bytes that torch's operations take for each encoded one, in between."""
Decode = Callable[[Codec, Sequence[torch.Tensor], torch.Tensor], None]


class Filled(NamedTuple):
    """A buffer and what is to be in it.

    Attributes:
        encoded: how weights lie in `source`.
        source: uint8, pinned, or on the device.
        target: uint8 on the device.
        there: the source is on the device.
    """

    encoded: Encoded
    source: torch.Tensor
    target: torch.Tensor
    there: bool = False


class Decoder:
    """Copies stages to a device and decodes them there, on two streams of its own.

    What is brought to the same place again is recorded, as a CUDA graph: to launch its copies and
    kernels one by one takes the host longer than the link takes for a layer of 4 bits.

    Args:
        device: a CUDA device.
        room: bytes of the largest portion that is encoded; 0 if none is.
        allocate: memory there: bytes -> uint8 [bytes].

    Attributes:
        copying: the stream in which stages are copied.
        enqueuing: held by whoever enqueues anything in its streams, and while they are recorded.
    """

    def __init__(
        self, device: torch.device, room: int, allocate: Callable[[int], torch.Tensor]
    ) -> None:
        self.copying = torch.cuda.Stream(device)
        self._decoding = torch.cuda.Stream(device) if room else self.copying
        self._buffers = [allocate(room) for _ in range(BUFFERS if room else 0)]
        self.enqueuing = threading.Lock()
        self._cut_off = False
        self._recorder = Recorder(self.enqueuing)
        # torch hands out memory that kernels launched before may still use: in its own stream they
        # come first.
        here = torch.cuda.Event()
        here.record(torch.cuda.current_stream(device))
        self.copying.wait_event(here)

    def bring(
        self,
        filled: Sequence[Filled],
        free: torch.cuda.Event | None,
        done: torch.cuda.Event,
        again: Hashable = None,
    ) -> None:
        """Enqueues what fills buffers on the device with weights.

        Args:
            filled: each buffer, and what is to be in it.
            free: when the buffers may be written to.
            done: to be recorded when they are filled.
            again: the same for what is filled from the same memory into the same; None if that is
                not going to happen.
        """
        graph = self._graph(filled, again)
        stream = self._stream(filled)
        with self.enqueuing:
            stream.wait_event(done)  # what was to fill the buffers before, if nobody waited for it
            if free is not None:
                stream.wait_event(free)
            if self._cut_off:  # what an interrupt left may still be decoded
                stream.wait_event(_recorded(self._decoding))
            self._cut_off = True
            with torch.cuda.stream(stream):
                if graph is None:
                    self._enqueue(filled)
                else:
                    graph.replay()
            done.record(stream)
            self._cut_off = False
        if graph is None:
            self._recorder.ran(again)

    def _stream(self, filled: Sequence[Filled]) -> torch.cuda.Stream:
        """That in which they are filled: not behind copies that they do not need."""
        return self._decoding if all(each.there for each in filled) else self.copying

    def _graph(self, filled: Sequence[Filled], again: Hashable) -> torch.cuda.CUDAGraph | None:
        """What was recorded of this, if it is worth it."""
        if again is None or not self._buffers or not _recordable(filled):
            return None
        return self._recorder.find(again, partial(self._enqueue, filled), self._stream(filled))

    def _enqueue(self, filled: Sequence[Filled]) -> None:
        """Enqueues copies and kernels in the current stream, which waits for all."""
        _copy_all(
            (_part(source, portion.source), _part(target, portion.target))
            for encoded, source, target, _ in filled
            for portion in encoded.portions
            if not portion.pieces
        )
        coming = []
        for encoded, source, target, there in filled:
            for portion in encoded.portions:
                if portion.pieces and there:
                    _decode_all(portion, source[portion.source], target)
                elif portion.pieces:
                    coming.append((portion, _part(source, portion.source), target))
        if coming:
            free = [_recorded(self.copying)] * BUFFERS
            for first in range(0, len(coming), BUFFERS):
                free = self._copy_and_decode(coming[first : first + BUFFERS], free)
            for event in free:
                self.copying.wait_event(event)

    def _copy_and_decode(
        self,
        portions: Sequence[tuple[Portion, torch.Tensor, torch.Tensor]],
        free: list[torch.cuda.Event],
    ) -> list[torch.cuda.Event]:
        """Enqueues some portions, one for each buffer.

        Args:
            portions: each with where it is, and where it is decoded to.
            free: when each buffer may be written to.

        Returns:
            When each buffer has been decoded.
        """
        copied, decoded = [], list(free)
        for (_, stored, _), buffer, event in zip(portions, self._buffers, free, strict=False):
            self.copying.wait_event(event)
            _copy_all([(stored, buffer[: stored.numel()])])
            copied.append(_recorded(self.copying))
        with torch.cuda.stream(self._decoding):
            for number, (portion, _, target) in enumerate(portions):
                self._decoding.wait_event(copied[number])
                _decode_all(portion, self._buffers[number], target)
                decoded[number] = _recorded(self._decoding)
        return decoded

    def enqueued(self) -> list[torch.cuda.Event]:
        """When all that is enqueued now has run."""
        with self.enqueuing:  # while it is recorded, what marks the end would be as well
            return [_recorded(self.copying), _recorded(self._decoding)]

    def close(self) -> None:
        """Ends; on return all that was enqueued has run."""
        self._recorder.close()
        self.synchronize()

    def synchronize(self) -> None:
        """Waits for all that was enqueued."""
        self.copying.synchronize()
        self._decoding.synchronize()


def _decode_all(portion: Portion, stored: torch.Tensor, target: torch.Tensor) -> None:
    """Enqueues the decoding of a portion that lies in `stored`, in the current stream."""
    for piece in portion.pieces:
        sources = [stored[place] for place in piece.sources]
        decode_of(type(piece.codec))(piece.codec, sources, target[piece.target])


def _recorded(stream: torch.cuda.Stream) -> torch.cuda.Event:
    """When the stream gets here."""
    event = torch.cuda.Event()
    event.record(stream)
    return event


def _recordable(filled: Sequence[Filled]) -> bool:
    """Whether it is worth recording, and can be: most of torch's operations take memory."""
    kinds = {
        type(piece.codec)
        for each in filled
        for portion in each.encoded.portions
        for piece in portion.pieces
    }
    return bool(kinds) and not any(
        kind.allocates and decode_of(kind) is _by_torch for kind in kinds
    )


def _copy_all(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Enqueues copies: from, to; uint8 of the same size."""
    parts = [
        (_part(source, place), _part(target, place))
        for source, target in pairs
        for begin in range(0, source.numel(), COPY)
        for place in [slice(begin, min(begin + COPY, source.numel()))]
    ]
    if parts:  # by one call of torch's: experts are many small copies
        sources, targets = zip(*parts, strict=True)
        torch._foreach_copy_(targets, sources, non_blocking=True)


def _part(tensor: torch.Tensor, place: slice) -> torch.Tensor:
    """A part, or the tensor where that is all of it."""
    return tensor if place.stop - place.start == tensor.numel() else tensor[place]


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
        from rabbitllm.checkpoint.codecs.launch import KERNELS

        if kind in KERNELS:
            return KERNELS[kind]
    return _by_torch


def _by_torch(codec: Codec, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
    codec.decode_on(stored, target)
