"""A measurement in a process of its own, and the Python that has what it needs."""

import importlib.metadata
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.version import Version

from benchmarks.peers.engines import PEERS
from harness.records.provenance import engine_hash, hardware

ROOT = Path(__file__).resolve().parents[2]
SHARED = ("torch", "transformers", "accelerate")
"""Of the same release in every environment."""


class ProcessError(Exception):
    """A process gave no figures."""


def is_met(requirement: str) -> bool:
    """Whether this environment has such a distribution."""
    wanted = Requirement(requirement)
    try:
        return wanted.specifier.contains(importlib.metadata.version(wanted.name))
    except importlib.metadata.PackageNotFoundError:
        return False


def python_of(requirements: Sequence[str]) -> list[str]:
    """The command of a Python that has these and this environment's torch and transformers."""
    if all(is_met(requirement) for requirement in requirements):
        return [sys.executable]
    same = [f"{name}=={Version(importlib.metadata.version(name)).public}" for name in SHARED]
    wanted = [part for spec in (*same, *requirements) for part in ("--with", spec)]
    release = f"{sys.version_info.major}.{sys.version_info.minor}"
    uv = ["uv", "run", "--quiet", "--isolated", "--no-project", "--python", release]
    return [*uv, *wanted, "python"]


def figures_of(command: Sequence[str], seconds: float) -> dict[str, Any]:
    """Runs a command that writes JSON to the file after `--out`, which this adds.

    Args:
        command: run in the repository's root.
        seconds: after which it is killed.

    Raises:
        ProcessError: it failed, or took longer.
    """
    with tempfile.TemporaryDirectory(prefix="figures-") as scratch:
        out = Path(scratch) / "figures.json"
        try:
            done = subprocess.run(
                [*command, "--out", str(out)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ProcessError(f"took longer than {seconds:g} s") from error
        if done.returncode != 0:
            last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
            raise ProcessError(f"ended with {done.returncode}: {last}\n{done.stderr[-2000:]}")
        figures: dict[str, Any] = json.loads(out.read_text())
        return figures


def run_peer(
    name: str,
    folder: Path,
    device: str,
    new_tokens: int,
    seconds: float,
    prefix: Sequence[str] = (),
) -> dict[str, Any]:
    """Runs a peer in its environment and returns its figures.

    Args:
        name: of a row of `PEERS`.
        folder: the checkpoint.
        device: "cuda" or "cpu".
        new_tokens: to generate.
        seconds: after which it is killed.
        prefix: a command that runs the one that follows it.

    Raises:
        ProcessError: it failed, or took longer.
    """
    command = [*prefix, *python_of(PEERS[name].requirements)]
    command += ["-m", "benchmarks.peers.child", name, "--folder", str(folder.resolve())]
    command += ["--device", device, "--new-tokens", str(new_tokens)]
    record = figures_of(command, seconds)
    about = {"model": folder.resolve().name, "hardware": hardware(device), "engine": engine_hash()}
    return record | about
