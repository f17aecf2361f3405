"""Pipes to another process, whose ends are file descriptors there and here."""

from __future__ import annotations

import os
import sys
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext

if sys.platform == "win32":
    import _winapi
    import msvcrt
    from multiprocessing.connection import PipeConnection

    def one_way(context: BaseContext) -> tuple[Connection, Connection]:
        """Return the end to read from and the end to write to; each can be sent to a process.

        multiprocessing's own pipes are asynchronous there, so no descriptor can stand for them.
        """
        here = _winapi.GetCurrentProcess()
        same = _winapi.DUPLICATE_SAME_ACCESS
        handles = []
        for number in os.pipe():
            handle = msvcrt.get_osfhandle(number)
            handles.append(_winapi.DuplicateHandle(here, handle, here, 0, False, same))
            os.close(number)
        return PipeConnection(handles[0], writable=False), PipeConnection(
            handles[1], readable=False
        )

    def descriptor(end: Connection) -> int:
        """Return a file descriptor of an end, good as long as the end is open."""
        return msvcrt.open_osfhandle(end.fileno(), os.O_BINARY)
else:

    def one_way(context: BaseContext) -> tuple[Connection, Connection]:
        """Return the end to read from and the end to write to; each can be sent to a process."""
        return context.Pipe(duplex=False)

    def descriptor(end: Connection) -> int:
        """Return a file descriptor of an end, good as long as the end is open."""
        return end.fileno()
