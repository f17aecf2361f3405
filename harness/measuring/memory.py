"""The memory that this process's tensors lie in, and what else can hold as many bytes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses import FakeTensor

from harness.measuring.weights import SUFFIXES

LEAST = 1024
"""Bytes of what counts besides tensors: smaller ones are names and numbers."""


def live_storages() -> dict[int, int]:
    """Address -> bytes of the memory behind tensors, arrays and strings of bytes of this process.

    Of every dtype, for a copy of weights may be kept as whatever bytes. Mapped files do not count:
    their pages are the page cache's.
    """
    gc.collect()
    mapped = mapped_files()
    found: dict[int, int] = {}
    for item in gc.get_objects():
        # type(), for isinstance would wake lazy proxies.
        if not issubclass(type(item), torch.Tensor):
            found.update(held_bytes(item))
            continue
        if item.layout != torch.strided:
            continue
        # What torch.compile traced with has no memory.
        if item.is_meta or isinstance(item, FakeTensor) or is_functorch_wrapped_tensor(item):
            continue
        storage = item.untyped_storage()
        address = storage.data_ptr()
        if not any(begin <= address < end for begin, end in mapped):
            found[address] = storage.nbytes()
    return found


def held_bytes(item: Any) -> Iterator[tuple[int, int]]:
    """Yields address and bytes of arrays and strings of bytes that an object refers to.

    They are no objects of the garbage collector's own.
    """
    for held in gc.get_referents(item):
        kind = type(held)
        if kind is np.ndarray and held.base is None and held.nbytes >= LEAST:
            yield held.ctypes.data, held.nbytes
        elif kind in (bytes, bytearray) and len(held) >= LEAST:
            yield id(held), len(held)


def mapped_files() -> list[tuple[int, int]]:
    """The address ranges that are views of weight files, on Linux."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text("utf-8", "replace").splitlines() if maps.exists() else []
    spans = [
        line.split(maxsplit=1)[0].split("-")
        for line in lines
        if any(suffix in line for suffix in SUFFIXES)
    ]
    return [(int(begin, 16), int(end, 16)) for begin, end in spans]


def anonymous_bytes() -> int:
    """Bytes of this process's memory that no file is behind, whoever asked for it; 0 if unknown."""
    status = Path("/proc/self/status")
    lines = status.read_text("ascii").splitlines() if status.exists() else []
    kinds = ("RssAnon:", "RssShmem:")
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(kinds))
