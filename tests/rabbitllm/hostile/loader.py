"""Loads checkpoints apart, each in a process of its own, and says what that took.

Usage: python loader.py FOLDER... Each folder gives a line of JSON: what came of it, seconds of
the processor, and the MiB by which the process grew at its peak. One that takes too much of either
is ended.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM  # noqa: F401  # before the forks: it takes long

from rabbitllm import AutoModel, CheckpointError

SECONDS = 30
MIB = 1500


def load(folder: str) -> str:
    try:
        AutoModel.from_pretrained(folder, device="cpu", host_memory="min")
    except CheckpointError as error:
        return f"CheckpointError: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def peak(pid: int) -> float:
    """MiB that a process had in memory at most."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0


def apart(folder: str) -> tuple[str, float, float]:
    """Loads in a fork; (what came of it, seconds, MiB)."""
    told, tell = os.pipe()
    if not (pid := os.fork()):
        before = peak(os.getpid())
        message = load(folder)
        os.write(tell, json.dumps([message[:1000], peak(os.getpid()) - before]).encode())
        os._exit(0)
    os.close(tell)
    process, before, seconds = psutil.Process(pid), peak(pid), 0.0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        times = process.cpu_times()
        seconds, grown = times.user + times.system, peak(pid) - before
        if seconds > SECONDS or grown > MIB:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            return "killed", seconds, grown
        time.sleep(0.01)
    with os.fdopen(told) as said:
        message, grown = json.loads(said.read() or '["died", 0]')
    return message, seconds, grown


if __name__ == "__main__":
    torch.set_num_threads(1)
    gc.freeze()  # what a collection touches is copied for the fork
    for path in sys.argv[1:]:
        print(json.dumps(apart(path)), flush=True)
