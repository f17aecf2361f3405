"""The tensors of a .bin file, as torch.save writes it: where each lies, without reading their data.

Such a file is a zip archive with the memory of tensors in it, uncompressed, and a pickle that says
what tensors those are. The pickle is read by `torch.load(weights_only=True)` and by nothing else:
that makes tensors alone and runs no code. It maps the file, and what is kept are the places.
"""

import mmap
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import torch
from torch import nn
from transformers.utils.import_utils import check_torch_load_is_safe

from rabbitllm.checkpoint.codecs.strided import Strided
from rabbitllm.checkpoint.tensors import (
    DTYPES,
    MAX_HEADER_BYTES,
    MOST_IN_FILE,
    Extent,
    FileState,
    TensorEntry,
)
from rabbitllm.errors import CheckpointError, summary

DAMAGED = (ValueError, TypeError, LookupError, AttributeError, AssertionError, RuntimeError)
"""What torch.load raises for a file that it cannot make sense of."""

KNOWN = frozenset(DTYPES.values())
LOCAL_HEADER = struct.Struct("<26xHH")
"""In front of a record: its end, two lengths of what follows, before the data."""
REWRITE = "torch.save(torch.load(file, weights_only=True), file) writes one that can be read."


def read_pickle(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one .bin file, in the order of its pickle.

    Raises:
        CheckpointError: torch is older than 2.6, the file is damaged or has an older format, its
            pickle carries code, or a tensor is of a kind that no model is made of.
    """
    try:
        check_torch_load_is_safe()
    except ValueError as error:
        raise CheckpointError(
            f"{file} is a pickle, and torch {torch.__version__} cannot keep one from running code: "
            "from 2.6 on it can. pip install -U torch."
        ) from error
    state = FileState.of(file.stat())
    records = _records(file)
    tensors = _load(file)
    start = _start(file, records, tensors)
    return {key: _entry(file, state, start, tensor) for key, tensor in tensors.items()}


def _records(file: Path) -> dict[int, int]:
    """Where the memory of tensors lies: offset in the file -> bytes.

    Raises:
        CheckpointError: it is no archive that torch.save writes.
    """
    try:
        with ZipFile(file) as archive, file.open("rb") as stream:
            found = {}
            for info in archive.infolist():
                _check(file, archive, info)
                if info.file_size and info.filename.split("/")[1:2] == ["data"]:
                    stream.seek(info.header_offset)
                    lengths = LOCAL_HEADER.unpack(stream.read(LOCAL_HEADER.size))
                    found[info.header_offset + LOCAL_HEADER.size + sum(lengths)] = info.file_size
            return found
    except (BadZipFile, struct.error, NotImplementedError, OSError, ValueError) as error:
        with file.open("rb") as stream:
            older = stream.read(1) == pickle.PROTO
        raise CheckpointError(
            f"{file} has the format of before torch 1.6, in which no tensor can be read alone. "
            f"{REWRITE}"
            if older
            else f"{file} is truncated or damaged: {summary(error)}. Download it again."
        ) from error


def _check(file: Path, archive: ZipFile, info: ZipInfo) -> None:
    """Raises CheckpointError for a record that torch.save does not write, or not here."""
    name = info.filename.rpartition("/")[2]
    if info.compress_type != ZIP_STORED:
        raise CheckpointError(f"{file} is compressed. {REWRITE}")
    if name == "data.pkl" and info.file_size > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"The pickle in {file} has {info.file_size:,} bytes. At most {MAX_HEADER_BYTES:,} are "
            "read: no model has so many tensors in one file. Save it in shards."
        )
    if name == "byteorder" and archive.read(info) != b"little":
        raise CheckpointError(f"{file} was written by a big-endian machine. {REWRITE}")


def _load(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file, mapped; what else is in it makes no model.

    Raises:
        CheckpointError: there are none, one is no plain tensor, or the pickle carries code.
    """
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} is a pickle of more than weights: {summary(error)}. What it asks for was not "
            "run. If you trust its authors, load it with transformers, and save_pretrained(...) "
            "writes a folder of weights alone."
        ) from error
    except (*DAMAGED, OSError, EOFError, MemoryError) as error:
        raise CheckpointError(f"{file} is truncated or damaged: {summary(error)}.") from error
    if not isinstance(loaded, Mapping):
        raise CheckpointError(f"{file} holds a {type(loaded).__name__}, not tensors by name.")
    tensors = {
        key: value
        for key, value in loaded.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)
    }
    if len(tensors) > MOST_IN_FILE:
        raise CheckpointError(f"{file} has more than {MOST_IN_FILE:,} tensors.")
    for key, tensor in tensors.items():
        plain = type(tensor) in (torch.Tensor, nn.Parameter) and tensor.layout == torch.strided
        if not plain or tensor.dtype not in KNOWN or tensor.device.type != "cpu":
            raise CheckpointError(
                f"{key} in {file} is of a kind that no weights have: {tensor.dtype}, "
                f"{tensor.layout}, on {tensor.device}."
            )
    return tensors


def _start(file: Path, records: Mapping[int, int], tensors: Mapping[str, torch.Tensor]) -> int:
    """The address that the file is mapped to: the one that puts all tensors' memory on records.

    Raises:
        CheckpointError: there is none, or more than one.
    """
    storages = {
        storage.data_ptr(): storage.nbytes()
        for storage in (tensor.untyped_storage() for tensor in tensors.values())
        if storage.nbytes()
    }
    if not storages:
        return 0
    first = min(storages)
    places = sorted(storages, reverse=True)  # those at the other end tell soonest
    starts = [
        first - offset
        for offset in records
        if (first - offset) % mmap.PAGESIZE == 0
        and all(records.get(place - first + offset) == storages[place] for place in places)
    ]
    if len(starts) != 1:
        raise CheckpointError(f"{file} is damaged: its tensors lie where it has no data.")
    return starts[0]


def _entry(file: Path, state: FileState, start: int, tensor: torch.Tensor) -> TensorEntry:
    """Where a mapped tensor lies."""
    shape = tuple(tensor.shape)
    if not tensor.numel():
        return TensorEntry((Extent(file, 0, 0, state),), tensor.dtype, shape)
    place = tensor.data_ptr() - start
    if tensor.is_contiguous():
        return TensorEntry((Extent(file, place, tensor.nbytes, state),), tensor.dtype, shape)
    codec = Strided.of(tensor)
    return TensorEntry((Extent(file, place, codec.span, state),), tensor.dtype, shape, codec)
