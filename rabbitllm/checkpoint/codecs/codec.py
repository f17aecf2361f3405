"""What a codec is: how a weight's stored bytes become the tensor that the module wants."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from typing_extensions import Self

Bytes: TypeAlias = npt.NDArray[np.uint8]


class Layout(NamedTuple):
    """What a tensor in a file is.

    Attributes:
        dtype: of its elements.
        shape: of the tensor.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]


class Unit(NamedTuple):
    """The smallest part of a weight that decodes by itself; a weight's last one may be smaller.

    Attributes:
        stored: bytes of it in each of the stored tensors, in which units follow one another; 0 for
            one that every unit needs whole.
        decoded: bytes of it in the weight.
    """

    stored: tuple[int, ...]
    decoded: int


class Codec(ABC):
    """How one weight is stored.

    The fields of a subclass, a frozen dataclass, are what decoding takes besides the stored bytes.
    A file's header keeps those of a codec that layer stores are written with: integers, and names.

    Attributes:
        name: what headers call it.
        in_place: weights can be streamed as they are stored; others go through a layer store.
        exact: decoding brings back the bits that the weight had before it was encoded.
        allocates: `decode_on` takes memory while it runs, so that no CUDA graph can hold it.
    """

    name: ClassVar[str]
    in_place: ClassVar[bool] = True
    exact: ClassVar[bool] = True
    allocates: ClassVar[bool] = True

    @property
    def scratch(self) -> int:
        """Bytes that decoding needs to work in."""
        return 0

    @abstractmethod
    def stored(self, weight: Layout) -> Mapping[str, Layout]:
        """The tensors that are stored of a weight, by what follows its name in theirs.

        Raises:
            ValueError: no such weight is stored like this.
        """

    @abstractmethod
    def unit(self, weight: Layout) -> Unit:
        """The parts of a weight that decode by themselves, its stored tensors in `stored`'s order.

        Readers cut there, and decode while they read.
        """

    @abstractmethod
    def decode(self, stored: Sequence[Bytes], target: Bytes, scratch: Bytes) -> None:
        """Makes a weight, or some units of it that follow one another; on the calling thread alone.

        Args:
            stored: their bytes in each of the stored tensors.
            target: as many bytes as they decode to.
            scratch: `scratch` bytes, whatever is in them.

        Raises:
            ValueError: the bytes are damaged.
        """

    @abstractmethod
    def decode_on(self, stored: Sequence[torch.Tensor], target: torch.Tensor) -> None:
        """The same by torch, on any device, in its current stream: nothing is waited for.

        What is damaged makes other values there, or an error of the device.

        Args:
            stored: their bytes in each of the stored tensors: uint8, aligned for their elements.
            target: uint8, as many bytes as they decode to.
        """

    @classmethod
    def expected(cls, weight: Layout) -> Self | None:
        """What `encode` makes of a weight as a rule; None if it is not worth encoding.

        None always for what only checkpoints are written in.
        """
        return None

    @classmethod
    def encode(cls, weight: torch.Tensor) -> tuple[Self, dict[str, torch.Tensor]] | None:
        """Encodes a weight on the host.

        Returns:
            How, and the stored tensors, as `stored` describes them. None if its values cannot be
            encoded.
        """
        return None

    def nbytes(self, weight: Layout) -> int:
        """The bytes that are stored of a weight."""
        return sum(nbytes(each) for each in self.stored(weight).values())


def elements(shape: Sequence[int]) -> int:
    """How many elements a tensor has; its sizes may come from a file.

    Raises:
        ValueError: a size is below zero, or they are too many for any tensor.
    """
    count = 1
    for size in shape:
        if size < 0 or count > MAX_ELEMENTS:  # before a long product of long numbers takes minutes
            raise ValueError(f"no tensor has the shape {tuple(shape)}")
        count *= size
    return count


def nbytes(tensor: Layout) -> int:
    """The bytes of a tensor's elements."""
    return elements(tensor.shape) * tensor.dtype.itemsize


def padded(size: int) -> int:
    """Bytes that a stored tensor takes in memory, where the next one begins on a boundary."""
    return -(-size // BOUNDARY) * BOUNDARY


BOUNDARY = 16
"""Bytes: no element is larger."""
MAX_ELEMENTS = 2**63
"""Of a tensor, in any order of its dimensions."""
