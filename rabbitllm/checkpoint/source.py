"""A checkpoint's files, and an index of the tensors in them."""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import index
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rabbitllm.checkpoint.codecs import from_header
from rabbitllm.checkpoint.codecs.codec import Codec, Layout, nbytes
from rabbitllm.checkpoint.codecs.plain import PLAIN
from rabbitllm.checkpoint.plain_json import parse, read_bytes
from rabbitllm.errors import CheckpointError, summary

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
MOVED = "rabbitllm-moved.json"
"""In a checkpoint's folder: where its weights lie since its own shards were deleted."""
PICKLES = ("*.bin", "*.pt", "*.pth")
MAX_JSON_BYTES = 1 << 24
"""Of a file that this program writes; what describes a store grows with the number of shards."""
MOST_TENSORS = 250_000
"""In a checkpoint. Those of the largest, each expert apart and quantised, are near to it."""
MOST_IN_FILE = 100_000
"""Of them in one file: a model of so many comes in many files."""
MAX_HEADER_BYTES = 32 << 20
"""Of a header, or of an index, with so many tensors; the format itself allows 100 MB."""
VALUES = 8
"""Of JSON for each tensor of a header, as `plain_json.parse` counts them."""

MALFORMED = (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)
"""What reading JSON, and numbers out of it, raises when a file is not what it should be."""

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


def read_json(path: Path) -> Any:
    """Reads a JSON file of ours; raises OSError, or one of `MALFORMED`."""
    return json.loads(read_bytes(path, MAX_JSON_BYTES))


def shard_names(folder: Path) -> list[str]:
    """The names of a checkpoint's weight files, whether they are there or not.

    Raises:
        CheckpointError: its index is malformed, or names files elsewhere.
    """
    return sorted(set(_weight_map(folder).values())) if _index(folder) else [WEIGHTS]


def read_index(folder: Path) -> dict[str, TensorEntry]:
    """Every tensor of the checkpoint in `folder`, by its key, from the headers alone.

    Raises:
        CheckpointError: no safetensors weights, a missing or truncated shard, a malformed header.
    """
    if not _index(folder):
        if not (folder / WEIGHTS).is_file():
            raise CheckpointError(_no_weights(folder))
        return read_header(folder / WEIGHTS)
    weight_map = _weight_map(folder)
    tensors: dict[str, TensorEntry] = {}
    # Names are compared, not tried: an index may hold some that no file system takes.
    files = {path.name for path in folder.iterdir() if path.is_file()}
    for shard in sorted(set(weight_map.values())):
        if shard not in files:
            missing = sum(1 for s in weight_map.values() if s == shard)
            raise CheckpointError(
                f"Shard {shard} ({missing} tensors) is missing from {folder}. Download the "
                "checkpoint again."
            )
        tensors |= read_header(folder / shard)
        if len(tensors) > MOST_TENSORS:
            raise CheckpointError(
                f"{folder} has more than {MOST_TENSORS:,} tensors: no model is stored like that."
            )
    if absent := sorted(weight_map.keys() - tensors.keys()):
        raise CheckpointError(
            f"{WEIGHTS_INDEX} lists {absent[0]} in {weight_map[absent[0]]}, which does not hold it "
            f"({len(absent)} such tensors in {folder}). Download the checkpoint again."
        )
    return tensors


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one safetensors file, without reading their data.

    Raises:
        CheckpointError: the header is none, or its tensors do not fill the file, byte for byte.
    """
    with file.open("rb") as stream:
        state = FileState.of(os.fstat(stream.fileno()))
        size = state.nbytes
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= size - 8:
            raise CheckpointError(
                f"{file} is no safetensors file or is truncated ({size:,} bytes)."
            )
        if length > MAX_HEADER_BYTES:
            raise CheckpointError(
                f"The header of {file} has {length:,} bytes. At most {MAX_HEADER_BYTES:,} are "
                "read: no model has so many tensors in one file. Save it in shards."
            )
        header = stream.read(length)
    try:
        fields = parse(header, VALUES * MOST_IN_FILE)
        metadata = fields.pop("__metadata__", None) or {}
        stored = {key: _entry(file, state, 8 + length, value) for key, value in fields.items()}
        tensors = _decoded(stored, metadata)
    except MALFORMED as error:
        raise CheckpointError(f"The header of {file} is malformed: {summary(error)}.") from error
    end = 8 + length
    # As the format asks: the tensors follow one another without holes, up to the file's end.
    for key, (extent,) in sorted(
        ((key, entry.stored) for key, entry in stored.items()),
        key=lambda pair: (pair[1][0].offset, pair[1][0].nbytes),
    ):
        if extent.offset != end or not _fits(stored[key]):
            raise CheckpointError(f"{file}: tensor {key} has an impossible place or shape.")
        end += extent.nbytes
    if end != size:
        raise CheckpointError(
            f"{file} is {'truncated' if size < end else 'damaged'}: it has {size:,} bytes, its "
            f"header describes {end:,}. Download it again."
        )
    return tensors


def _entry(file: Path, state: FileState, start: int, value: Mapping[str, Any]) -> TensorEntry:
    """A header's entry, for data that begin at byte `start`; raises one of `MALFORMED`."""
    first, end = map(index, value["data_offsets"])
    if value["dtype"] not in DTYPES:
        raise ValueError(f"no dtype {value['dtype']!r} is known")
    extent = Extent(file, start + first, end - first, state)
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


def _fits(entry: TensorEntry) -> bool:
    """Whether a stored tensor has as many elements as there are bytes for."""
    try:
        return entry.nbytes == nbytes(entry.layout)
    except ValueError:
        return False


def _index(folder: Path) -> bool:
    return (folder / WEIGHTS_INDEX).is_file()


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor key -> shard name; a name may not lead out of the folder."""
    path = folder / WEIGHTS_INDEX
    try:
        text = read_bytes(path, MAX_HEADER_BYTES)
        weight_map = dict(parse(text, MOST_TENSORS)["weight_map"])
    except MALFORMED as error:
        raise CheckpointError(f"{path} is no index of shards: {summary(error)}.") from error
    for shard in weight_map.values():
        if (
            not isinstance(shard, str)
            or Path(shard).name != shard
            or not shard.endswith(".safetensors")
        ):
            raise CheckpointError(
                f"{path} names {shard!r}, which is no safetensors file of that folder."
            )
    return weight_map


def _no_weights(folder: Path) -> str:
    pickles = [path.name for pattern in PICKLES for path in sorted(folder.glob(pattern))]
    if pickles:
        return (
            f"{folder} holds its weights as pickles ({pickles[0]}), which can run code when read. "
            "Convert them: "
            f"model.save_pretrained(..., safe_serialization=True) with transformers."
        )
    return (
        f"{folder} holds neither {WEIGHTS} nor {WEIGHTS_INDEX}. Weights in another format must be "
        "converted: model.save_pretrained(...) with transformers."
    )


def total_bytes(entries: Iterable[TensorEntry]) -> int:
    """The bytes that these tensors take on disk."""
    return sum(entry.nbytes for entry in entries)
