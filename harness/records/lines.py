"""Results that are no cells': dataclasses as JSON lines, one file for each release."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock

from harness.records.record import to_json
from harness.records.store import write_atomically
from harness.tables import TableError, build

Kind = TypeVar("Kind")


def path_of(folder: Path, release: str) -> Path:
    """The file of a release."""
    return folder / f"transformers-{release}.jsonl"


@dataclass(frozen=True)
class Lines(Generic[Kind]):
    """How results of one kind are kept.

    Attributes:
        kind: their dataclass.
        key: what a result is of; a file holds one of each, in this order.
        again: what makes a result anew, in words.
    """

    kind: type[Kind]
    key: Callable[[Kind], Any]
    again: str

    def read(self, path: Path) -> list[Kind]:
        """The results in a file, none if there is no file.

        Raises:
            TableError: a line is no result; the message names it.
        """
        if not path.exists():
            return []
        results = []
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1):
            where = f"{path}:{number}"
            try:
                results.append(build(self.kind, json.loads(line), where))
            except (json.JSONDecodeError, TypeError) as error:
                raise TableError(f"{where}: {error}. Delete that line and {self.again}.") from error
        return results

    def put(self, path: Path, results: Iterable[Kind]) -> None:
        """Writes results, each in place of the one with its key."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.parent / ".lock"):
            merged = {self.key(result): result for result in [*self.read(path), *results]}
            lines = [to_json(merged[key]) + "\n" for key in sorted(merged)]
            write_atomically(path, "".join(lines))
