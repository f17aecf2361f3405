"""A server in a process of its own."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[str]:
    """`rabbitllm serve` on the CPU; gives the URL that clients take as their base."""
    arguments = ["serve", str(folder), "--port", "0", "--device", "cpu", *options]
    process = subprocess.Popen(
        [sys.executable, "-m", "rabbitllm", *arguments], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr
        printed = []
        for line in process.stderr:
            printed.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+/v1", line):
                threading.Thread(target=process.stderr.read, daemon=True).start()
                yield found[0]
                return
        raise AssertionError("".join(printed))
    finally:
        process.kill()
        process.wait()
