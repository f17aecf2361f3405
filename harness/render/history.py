"""The records of before: in another folder, or as git has them."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from harness.records import Record, read_all


def before(results: Path, place: str | None) -> list[Record]:
    """Return the records to compare with those in `results`.

    Args:
        results: the folder of records.
        place: a folder, or a git revision; None is HEAD if there is one that has the folder.

    Raises:
        ValueError: the place is neither, or holds no records.
    """
    if place is not None and Path(place).is_dir():
        return read_all(Path(place))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            listed = git(results, "ls-tree", "--name-only", place or "HEAD")
            for name in listed.splitlines():
                if name.startswith("transformers-") and name.endswith(".jsonl"):
                    text = git(results, "show", f"{place or 'HEAD'}:./{name}")
                    (Path(scratch) / name).write_text(text, encoding="utf-8", newline="\n")
        except (OSError, subprocess.CalledProcessError) as error:
            if place is None:
                return []
            raise ValueError(f"{place} is neither a folder nor a git revision: {error}") from error
        found = read_all(Path(scratch))
    if not found and place is not None:
        raise ValueError(f"Revision {place} has no records in {results}.")
    return found


def git(folder: Path, *arguments: str) -> str:
    """Return what a git command prints, run in a folder.

    Raises:
        CalledProcessError: it failed.
        OSError: there is no git.
    """
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, encoding="utf-8").stdout
