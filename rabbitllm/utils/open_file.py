"""A file that several threads read at once, each at a place of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from queue import SimpleQueue

POSITIONS = 8
"""Reads at the same time where the system has no positioned ones: as many as a `Reader` starts."""


class OpenFile:
    """A file held open: what takes its name does not change what is read.

    Where the system reads at a place (`os.preadv`: Linux, macOS 11) one descriptor serves all.
    Elsewhere each read has one to itself, which it moves to its place.

    Args:
        file: which.
        direct: around the page cache, where the system and the file system can: then buffers, their
            sizes and places are aligned.

    Attributes:
        descriptor: of the file, to ask what it is, or to map it.

    Raises:
        OSError: it cannot be opened.
    """

    def __init__(self, file: Path, direct: bool = False) -> None:
        self.descriptor = _open(file, direct)
        self._streams: list[FileIO] = []
        self._idle: SimpleQueue[FileIO] = SimpleQueue()
        if not hasattr(os, "preadv"):
            self._streams = [FileIO(_open(file, direct), "rb") for _ in range(POSITIONS)]
            for stream in self._streams:
                self._idle.put(stream)

    def read(self, buffer: memoryview, start: int) -> int:
        """Reads into a buffer what is there from byte `start` on, or some of it.

        Returns:
            The bytes that came; 0 at the end of the file.
        """
        if not self._streams:
            return os.preadv(self.descriptor, [buffer], start)
        with self._one() as stream:
            stream.seek(start)
            return stream.readinto(buffer) or 0

    def close(self) -> None:
        """Closes it; nobody may read any more."""
        os.close(self.descriptor)
        for stream in self._streams:
            stream.close()

    @contextmanager
    def _one(self) -> Iterator[FileIO]:
        """A stream that is this thread's for a while."""
        stream = self._idle.get()
        try:
            yield stream
        finally:
            self._idle.put(stream)


def _open(file: Path, direct: bool) -> int:
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    around = getattr(os, "O_DIRECT", 0) if direct else 0
    try:
        return os.open(file, flags | around)
    except OSError:
        if not around:
            raise
        return os.open(file, flags)  # a file system without direct reads
