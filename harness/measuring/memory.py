"""The memory that this process's tensors lie in."""

from __future__ import annotations

import gc
from pathlib import Path

import torch
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._subclasses import FakeTensor


def live_storages() -> dict[int, int]:
    """Address -> bytes of the memory behind the floating-point tensors of this process.

    Mapped files do not count: their pages are the page cache's.
    """
    gc.collect()
    mapped = mapped_files()
    found = {}
    for item in gc.get_objects():
        # type(), for isinstance would wake lazy proxies.
        if not issubclass(type(item), torch.Tensor) or item.layout != torch.strided:
            continue
        # What torch.compile traced with has no memory.
        if item.is_meta or isinstance(item, FakeTensor) or is_functorch_wrapped_tensor(item):
            continue
        storage = item.untyped_storage()
        address = storage.data_ptr()
        if item.is_floating_point() and not any(begin <= address < end for begin, end in mapped):
            found[address] = storage.nbytes()
    return found


def mapped_files() -> list[tuple[int, int]]:
    """The address ranges that are views of safetensors files, on Linux."""
    maps = Path("/proc/self/maps")
    lines = maps.read_text("utf-8", "replace").splitlines() if maps.exists() else []
    spans = [line.split(maxsplit=1)[0].split("-") for line in lines if ".safetensors" in line]
    return [(int(begin, 16), int(end, 16)) for begin, end in spans]
