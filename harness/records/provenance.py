"""Where and with what a cell is measured: packages, hardware class, hashes of the code."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
from functools import cache
from glob import escape

from harness.matrix import GOLDEN, ROOT, Architecture, Cell
from harness.records.code import hash_code

PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "huggingface_hub",
    "safetensors",
    "accelerate",
    "numpy",
    "kernels",
    "flash_attn",
    "gguf",
)
"""Distributions whose versions can change a result."""
ENGINE = ("*.py", "checkpoint/**/*.py", "measure/limits.py", "streaming/**/*.py", "utils/*.py")
"""Files in rabbitllm/ that can; the command line and the server cannot."""


@cache
def versions() -> dict[str, str]:
    """The version of Python and of each of `PACKAGES` that is installed."""
    found = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version()} | {n: v for n, v in found.items() if v}


@cache
def hardware(device: str) -> str:
    """The class of machine: enough to tell whether speeds compare, no name of a host."""
    import torch  # the environment that plans a run has no torch

    capability = torch.backends.cpu.get_cpu_capability()
    cpu = f"cpu {platform.machine()} {capability} {cores()} cores"
    return f"{torch.cuda.get_device_name()}, {cpu}" if device == "cuda" else cpu


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def engine_hash() -> str:
    """The hash of the engine's code."""
    return hash_code(ROOT / "rabbitllm", ENGINE)


def recipe(architecture: Architecture) -> str:
    """All that an architecture's row says, as text."""
    return json.dumps(dataclasses.asdict(architecture), sort_keys=True)


@cache
def golden(architecture: str) -> str:
    """The text of an architecture's files in matrix/golden, and of all tokenizers there."""
    named = GOLDEN.glob(f"*/{escape(architecture)}.json")
    paths = sorted({*named, *GOLDEN.glob("tokenizers/*")})  # whose names are of families
    return "".join(path.read_text("utf-8") for path in paths)


@cache
def measuring_hash() -> str:
    """The hash of the measuring code: no other folder of harness/ can change a result."""
    return hash_code(ROOT / "harness" / "measuring", ["**/*.py"])


def check_hash(cell: Cell) -> str:
    """The hash of the measuring code, of the cell's rows, checks and golden files."""
    backend = json.dumps(dataclasses.asdict(cell.backend), sort_keys=True)
    rows = f"{recipe(cell.architecture)}{backend}{cell.checks}"
    text = f"{measuring_hash()}{rows}{golden(cell.architecture.id)}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
