"""The server's process: its life, and what it holds."""

import asyncio
import contextlib
import os
import re
import sys
import time
from collections.abc import AsyncIterator

import psutil

from benchmarks.serving_soak.clients import KEY, LIMIT, NAME

SETTLING = 60.0
"""Seconds in which the server closes what misbehaving clients left open."""


@contextlib.asynccontextmanager
async def server(arguments: list[str]) -> AsyncIterator[tuple[int, psutil.Process]]:
    """A server of its own: its port and its process."""
    command = [sys.executable, "-m", "rabbitllm", "serve", *arguments, "--port", "0"]
    process = await asyncio.create_subprocess_exec(
        *command,
        *("--name", NAME),
        env=os.environ | {"RABBITLLM_API_KEY": KEY},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr
    printed = b""
    try:
        while not (found := re.search(rb"http://127\.0\.0\.1:(\d+)/v1", printed)):
            line = await process.stderr.readline()
            if not line:
                raise RuntimeError(f"The server did not start: {printed.decode()}")
            printed += line
        draining = asyncio.create_task(process.stderr.read())
        yield int(found[1]), psutil.Process(process.pid)
        process.terminate()
        await asyncio.wait_for(process.wait(), LIMIT)
        await draining
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def count(process: psutil.Process) -> dict[str, float]:
    """What a process holds."""
    with process.oneshot():
        return {
            "RSS MiB": process.memory_info().rss / 2**20,
            "threads": process.num_threads(),
            "descriptors": process.num_fds(),
        }


async def settled(process: psutil.Process, before: dict[str, float]) -> dict[str, float]:
    """What the process holds once it has closed what clients left, or after `SETTLING` seconds."""
    end = time.monotonic() + SETTLING
    while (after := count(process))["descriptors"] > before["descriptors"]:
        if time.monotonic() > end:
            break
        await asyncio.sleep(0.5)
    return after
