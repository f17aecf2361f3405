"""The snapshots of releases, each a file of facts."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.records import write_atomically
from harness.stock import answers, snapshot
from harness.stock.differences import QUESTIONS
from rabbitllm.releases.environments import Environment, Environments

FOLDER = "stock"
"""Of snapshots, in that of the reports."""


@dataclass(frozen=True)
class Asked:
    """What releases are asked, see `harness.stock.questions`.

    Attributes:
        folder: that the questions were written to.
        digest: of them.
        real: real models, and the GGUF files with their tokenizers.
    """

    folder: Path
    digest: str
    real: Mapping[str, Path]


def path_of(release: str, folder: Path) -> Path:
    """The file of a release's snapshot."""
    return folder / f"transformers-{release}.json"


def take(
    release: str, types: Iterable[str], environments: Environments, asked: Asked
) -> dict[str, str]:
    """The facts of a release, see `harness.stock.snapshot` and `harness.stock.answers`.

    Raises:
        UnavailableError: the release cannot be installed.
        ValueError: a script failed there; the message is its last line.
    """
    environment = environments.make(release)
    gguf = [f"{name}={path}" for name, path in asked.real.items()]
    facts = {QUESTIONS: asked.digest}
    facts |= _printed(snapshot.__file__, *types, environment=environment)
    facts |= _printed(answers.__file__, str(asked.folder), *gguf, environment=environment)
    return facts


def _printed(script: str, *arguments: str, environment: Environment) -> dict[str, str]:
    command = [str(environment.bin / "python"), "-I", script, *arguments]
    done = subprocess.run(command, env=environment.variables, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        raise ValueError(f"No snapshot of transformers {environment.release}: {said[0]}")
    facts: dict[str, str] = json.loads(done.stdout)
    return facts


def write(release: str, facts: Mapping[str, str], folder: Path) -> Path:
    """Writes a snapshot; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(release, folder)
    write_atomically(path, json.dumps(facts, ensure_ascii=False, indent=0, sort_keys=True) + "\n")
    return path


def read(release: str, folder: Path) -> dict[str, str]:
    """The facts of a release; none if there is no snapshot of it."""
    path = path_of(release, folder)
    facts: dict[str, str] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return facts
