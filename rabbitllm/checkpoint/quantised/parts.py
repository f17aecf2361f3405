"""What a quantised checkpoint stores of one weight."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rabbitllm.checkpoint.codecs.codec import Codec, nbytes
from rabbitllm.checkpoint.tensors import TensorEntry
from rabbitllm.errors import CheckpointError


@dataclass(frozen=True)
class Parts:
    """The tensors that are one weight together.

    Attributes:
        name: the key that the weight would have if it were not quantised.
        tensors: suffix -> tensor on disk.
        settings: what the checkpoint's config says of its quantisation.
        dtype: of the weight.
        read: reads one of the tensors, by its suffix: of the scheme's `telling`.
    """

    name: str
    tensors: Mapping[str, TensorEntry]
    settings: Mapping[str, Any]
    dtype: torch.dtype
    read: Callable[[str], torch.Tensor]

    @property
    def dtype_name(self) -> str:
        """Of the weight, as in "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    def entry(self, codec: Codec, shape: Sequence[int], *suffixes: str) -> TensorEntry:
        """The weight, as one tensor on disk.

        Args:
            codec: how it is stored.
            shape: of the weight.
            suffixes: of what is stored of it, in the codec's order.

        Raises:
            CheckpointError: they are not what the codec stores of such a weight.
        """
        found = [self.tensors[suffix] for suffix in suffixes]
        entry = TensorEntry(
            tuple(place for each in found for place in each.stored), self.dtype, tuple(shape), codec
        )
        try:
            wanted = [nbytes(layout) for layout in codec.stored(entry.layout).values()]
        except ValueError:
            wanted = []
        if wanted != [extent.nbytes for extent in entry.stored]:
            raise self.error("they do not belong together")
        return entry

    def error(self, why: str) -> CheckpointError:
        """That the weight cannot be read."""
        first = next(iter(self.tensors.values()))
        shapes = ", ".join(f"{s} {list(each.shape)}" for s, each in self.tensors.items())
        return CheckpointError(f"{self.name} in {first.file} cannot be read: {why} ({shapes}).")


@dataclass(frozen=True)
class Scheme:
    """One way of storing a weight.

    Attributes:
        suffixes: of the tensors that are one weight; the first shows that there is one.
        entry: makes one tensor of them; raises CheckpointError if that cannot be.
        target: the suffix of the weight.
        optional: of tensors that may be absent.
        telling: of small tensors whose values say how others are to be read.
    """

    suffixes: tuple[str, ...]
    entry: Callable[[Parts], TensorEntry]
    target: str = ".weight"
    optional: frozenset[str] = frozenset()
    telling: frozenset[str] = frozenset()
