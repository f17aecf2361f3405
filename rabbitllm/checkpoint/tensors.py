"""Tensors on disk: what the header of a safetensors file says of them."""

import os
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from rabbitllm.checkpoint.codecs import from_header
from rabbitllm.checkpoint.codecs.codec import Codec, Layout, elements, nbytes
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.plain_json import MALFORMED, parse
from rabbitllm.errors import CheckpointError, summary

MOST_IN_FILE = 100_000
"""Tensors of one file: a model of more comes in many files."""
MAX_HEADER_BYTES = 32 << 20
"""Of a header, or of an index, with so many tensors; the format itself allows 100 MB."""
VALUES = 8
"""Of JSON for each tensor of a header, as `plain_json.parse` counts them."""

# https://github.com/huggingface/safetensors: the format's names of the element types.
DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}
UNREAD = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8}
"""The format's other types -> bits of an element: nothing here makes weights of them alone."""
RAW = torch.bits8
"""What the bytes of such a tensor are: in its shape if each is an element, else one dimension."""


class FileState(NamedTuple):
    """What tells whether a file has been written to.

    Attributes:
        nbytes: its size.
        mtime_ns: when it was written last.
    """

    nbytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileState":
        """That of a file with this status."""
        return cls(status.st_size, status.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Extent:
    """Bytes of a file that belong together.

    Attributes:
        file: the safetensors file.
        offset: of the first byte, from the file's start.
        nbytes: how many bytes.
        state: the file's when its header was read; None if that was not read from a file.
    """

    file: Path
    offset: int
    nbytes: int
    state: FileState | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor on disk.

    Attributes:
        stored: where its stored tensors are, in the order of its codec; of a plain one, itself.
        dtype: the element type, once decoded.
        shape: the shape, once decoded.
        codec: how what is stored becomes the tensor.
    """

    stored: tuple[Extent, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]
    codec: Codec = PLAIN

    @property
    def layout(self) -> Layout:
        """What it is once decoded."""
        return Layout(self.dtype, self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes that it takes on disk."""
        return sum(extent.nbytes for extent in self.stored)

    @property
    def file(self) -> Path:
        """The file of what is stored of it first."""
        return self.stored[0].file

    @property
    def parts(self) -> "tuple[TensorEntry, ...]":
        """The tensors that it consists of: itself."""
        return (self,)

    @property
    def plain(self) -> bool:
        """Whether its elements are stored as they compute."""
        return self.codec == PLAIN


@dataclass(frozen=True, slots=True)
class Joined:
    """A weight whose elements are those of several tensors on disk, one behind the other.

    Attributes:
        parts: those tensors.
        dtype: the element type, once decoded.
        shape: of the weight.
    """

    parts: tuple[TensorEntry, ...]
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        """What it is once decoded."""
        return Layout(self.dtype, self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes that it takes on disk."""
        return total_bytes(self.parts)

    @property
    def plain(self) -> bool:
        """Whether its elements are stored as they compute."""
        return all(part.plain for part in self.parts)


WeightEntry: TypeAlias = TensorEntry | Joined
"""Where a weight lies on disk."""


def total_bytes(entries: Iterable[TensorEntry]) -> int:
    """The bytes that these tensors take on disk."""
    return sum(entry.nbytes for entry in entries)


def in_plain_pieces(weights: Collection[WeightEntry]) -> bool:
    """Whether a layer store of these weights would hold the same bytes, put together."""
    return all(each.plain for each in weights) and any(len(each.parts) > 1 for each in weights)


def files_of(weights: Iterable[WeightEntry]) -> set[Path]:
    """The files that weights lie in."""
    return {place.file for each in weights for part in each.parts for place in part.stored}


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file, without reading their data.

    Those in a type of `UNREAD` are bytes: checkpoints hold some that their models do not need.

    Raises:
        CheckpointError: the header is none, or its tensors do not fill the file, byte for byte.
    """
    state, header = _header(file)
    start = 8 + len(header)
    try:
        fields = parse_header(header)
        metadata = fields.pop("__metadata__", None) or {}
        stored = {key: _entry(file, state, start, value) for key, value in fields.items()}
        tensors = _decoded(stored, metadata)
    except MALFORMED as error:
        raise CheckpointError(f"The header of {file} is malformed: {summary(error)}.") from error
    _check_places(file, state.nbytes, start, stored)
    return tensors


def parse_header(header: bytes) -> dict[str, Any]:
    """The fields of a header; raises one of `MALFORMED`."""
    fields: dict[str, Any] = parse(header, VALUES * MOST_IN_FILE)
    return fields


def _header(file: Path) -> tuple[FileState, bytes]:
    """A file's state and its header, which begins at byte 8."""
    with file.open("rb") as stream:
        state = FileState.of(os.fstat(stream.fileno()))
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= state.nbytes - 8:
            raise CheckpointError(
                f"{file} is no safetensors file or is truncated ({state.nbytes:,} bytes)."
            )
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"The header of {file} has {length:,} bytes. At most {MAX_HEADER_BYTES:,} are "
                "read: no model has so many tensors in one file. Save it in shards."
            )
        return state, stream.read(length)


def _entry(file: Path, state: FileState, start: int, value: Mapping[str, Any]) -> TensorEntry:
    """A header's entry, for data that begin at byte `start`; raises one of `MALFORMED`."""
    first, end = map(index, value["data_offsets"])
    extent = Extent(file, start + first, end - first, state)
    if value["dtype"] in UNREAD:
        if UNREAD[value["dtype"]] * elements(value["shape"]) != 8 * extent.nbytes:
            raise ValueError(f"{extent.nbytes} bytes hold no {value['dtype']} {value['shape']}")
        whole = elements(value["shape"]) == extent.nbytes
        shape = map(index, value["shape"]) if whole else (extent.nbytes,)
        return TensorEntry((extent,), RAW, tuple(shape))
    if value["dtype"] not in DTYPES:
        raise ValueError(f"no dtype {value['dtype']!r} is known")
    return TensorEntry((extent,), *_layout(value))


def _layout(value: Mapping[str, Any]) -> Layout:
    """What a header says of a tensor; raises one of `MALFORMED`."""
    return Layout(DTYPES[value["dtype"]], tuple(index(size) for size in value["shape"]))


def _decoded(stored: dict[str, TensorEntry], metadata: Mapping[str, str]) -> dict[str, TensorEntry]:
    """A file's tensors as what they stand for; raises one of `MALFORMED`."""
    tensors = dict(stored)
    for name, (codec, about) in from_header(metadata).items():
        layout = _layout(about)
        extents: list[Extent] = []
        for suffix, expected in codec.stored(layout).items():
            entry = tensors.pop(name + suffix)
            if entry.layout != expected:
                raise ValueError(f"{name + suffix} is not what {codec} stores of {layout}")
            extents += entry.stored
        tensors[name] = TensorEntry(tuple(extents), *layout, codec)
    return tensors


def _check_places(file: Path, size: int, start: int, stored: Mapping[str, TensorEntry]) -> None:
    """As the format asks: the tensors follow one another without holes, up to the file's end."""
    end = start
    for key, entry in sorted(
        stored.items(), key=lambda pair: (pair[1].stored[0].offset, pair[1].nbytes)
    ):
        if entry.stored[0].offset != end or not _fits(entry):
            raise CheckpointError(f"{file}: tensor {key} has an impossible place or shape.")
        end += entry.nbytes
    if end != size:
        raise CheckpointError(
            f"{file} is {'truncated' if size < end else 'damaged'}: it has {size:,} bytes, its "
            f"header describes {end:,}. Download it again."
        )


def _fits(entry: TensorEntry) -> bool:
    """Whether a stored tensor has as many elements as there are bytes for."""
    try:
        return entry.nbytes == nbytes(entry.layout)
    except ValueError:
        return False
