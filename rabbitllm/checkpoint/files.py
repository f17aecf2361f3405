"""Weight files, held open, and watched: what is read must be what the header described.

A file that is replaced by another of its name goes on as it was, for it is held open. One that is
written to, or cut off, is an error when it is read the next time.
"""

import mmap
import os
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from rabbitllm.checkpoint.tensors import FileState
from rabbitllm.errors import CheckpointError
from rabbitllm.utils.open_file import OpenFile


class Files:
    """Files that are opened at first use, and closed with this object.

    Args:
        states: file -> what it was when its header was read; None where nobody knows.
    """

    def __init__(self, states: Mapping[Path, FileState | None]) -> None:
        self._states = states
        self._open: dict[tuple[Path, bool], OpenFile] = {}
        self._maps: dict[Path, torch.Tensor] = {}

    def open(self, file: Path, direct: bool = False) -> OpenFile:
        """Has a file open, to be read; around the page cache if that can be.

        Raises:
            OSError: it cannot be opened.
        """
        key = (file, direct)
        if key not in self._open:
            self._open[key] = OpenFile(file, direct)
            weakref.finalize(self, self._open[key].close)
        return self._open[key]

    def read(
        self, buffer: memoryview, needed: int, file: Path, start: int, direct: bool = False
    ) -> None:
        """Reads a file from byte `start` on.

        Args:
            buffer: to be filled, as far as the file goes.
            needed: bytes that must come.
            file: an open one.
            start: where to begin.
            direct: around the page cache: then the buffer, its size and `start` are aligned.

        Raises:
            CheckpointError: the file ends earlier.
        """
        opened, done = self._open[file, direct], 0
        while done < needed:
            count = opened.read(buffer[done:], start + done)
            if count == 0:
                raise CheckpointError(
                    f"{file} ends at byte {start + done:,}, in the middle of a tensor. "
                    "Was it replaced while in use?"
                )
            done += count

    def map(self, file: Path) -> torch.Tensor:
        """A file as uint8 [bytes], of which nothing is read before it is used.

        Whoever writes to it changes the memory alone. A file that is cut off must not be used any
        more: the system ends a process that reaches behind the end, by SIGBUS.

        Raises:
            CheckpointError: the file is not what it was.
        """
        if file not in self._maps:
            opened = self.open(file)
            self.check([file])
            memory = mmap.mmap(opened.descriptor, 0, access=mmap.ACCESS_COPY)
            self._maps[file] = torch.frombuffer(memory, dtype=torch.uint8)
        return self._maps[file]

    def check_mapped(self) -> None:
        """Raises CheckpointError if a file that is mapped is not what it was."""
        self.check(self._maps)

    def check(self, files: Iterable[Path], direct: bool = False) -> None:
        """What has been read of open files is what their headers described.

        Raises:
            CheckpointError: one of them has been written to, or is another one.
        """
        for file in files:
            was, found = self._states[file], os.fstat(self._open[file, direct].descriptor)
            if was is not None and was != FileState.of(found):
                raise CheckpointError(
                    f"{file} was changed while it was in use: it had {was.nbytes:,} bytes, and has "
                    f"{found.st_size:,} now, or other ones. Load the model again; a new version of "
                    "a file is safe to bring by renaming it to the old one's name."
                )
