"""From disk to host memory: tensors read into buffers, or mapped where no copy is wanted."""

import os
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path

import torch

from rabbitllm.checkpoint.source import TensorEntry
from rabbitllm.errors import CheckpointError
from rabbitllm.streaming.stages import Stage

CHUNK = 16 * 2**20
"""Bytes that one read asks for; a larger tensor is read by several threads."""
READERS = min(8, os.cpu_count() or 1)


class Reader:
    """Reads weights by their place in safetensors files.

    Args:
        entries: weight name -> where it is; dtype and shape there are those of the model.
    """

    def __init__(self, entries: Mapping[str, TensorEntry]) -> None:
        self.entries = entries
        self._files: dict[Path, int] = {}
        self._maps: dict[Path, torch.Tensor] = {}

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(READERS, thread_name_prefix="rabbitllm-read")

    def read_stage(self, stage: Stage, buffer: torch.Tensor) -> None:
        """Fills `buffer` (uint8, in host memory, at least `stage.nbytes`) with a stage's weights.

        Raises:
            CheckpointError: a file ends before its tensor does.
        """
        jobs = []
        for weight in stage.weights:
            entry = self.entries[weight.name]
            file = self._open(entry.file)
            for start in range(0, entry.nbytes, CHUNK):
                stop = min(start + CHUNK, entry.nbytes)
                target = buffer[weight.offset + start : weight.offset + stop]
                jobs.append((file, entry.file, entry.offset + start, target))
        if len(jobs) <= len(stage.weights):
            for job in jobs:
                _read(*job)
        else:
            for _ in self._pool.map(lambda job: _read(*job), jobs):
                pass

    def view(self, name: str) -> torch.Tensor:
        """A weight as a view of its mapped file: nothing is read before it is used."""
        entry = self.entries[name]
        if entry.file not in self._maps:
            size = entry.file.stat().st_size
            self._maps[entry.file] = torch.from_file(
                str(entry.file), shared=False, size=size, dtype=torch.uint8
            )
        data = self._maps[entry.file][entry.offset : entry.offset + entry.nbytes]
        if entry.offset % entry.dtype.itemsize:
            data = data.clone()
        return data.view(entry.dtype).view(entry.shape)

    def _open(self, file: Path) -> int:
        if file not in self._files:
            descriptor = self._files[file] = os.open(file, os.O_RDONLY)
            weakref.finalize(self, os.close, descriptor)
        return self._files[file]


def _read(descriptor: int, file: Path, offset: int, target: torch.Tensor) -> None:
    view = memoryview(target.numpy().data)
    while view:
        done = os.preadv(descriptor, [view], offset)
        if done == 0:
            raise CheckpointError(
                f"{file} ends at byte {offset:,}, in the middle of a tensor. Was it replaced?"
            )
        view, offset = view[done:], offset + done
