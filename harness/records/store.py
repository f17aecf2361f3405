"""The store of records: JSON lines, one file for each release."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from filelock import FileLock

from harness.records.record import Record, RecordError, from_json, to_json

BOUNDARIES = "boundaries"
"""Folder, beside that of the records, for those of releases that are no rows of the matrix and lie
between two in which a cell has different statuses."""

ENVIRONMENTS = "environments"
"""Folder, beside that of the records, for those of each row of matrix/environments.toml."""

AHEAD = "ahead"
"""Folder, beside that of the records, for those of what is ahead of the releases: pre-releases, and
transformers' main branch, whose version is one of development."""

logger = logging.getLogger(__name__)


class Store:
    """The records of one release in `folder/transformers-<release>.jsonl`.

    Writers may be several processes: each write reads the file, replaces the records that it brings
    and keeps all others, under a lock; readers never see half a file. A line that is no record, or
    one of another release, is reported, and the next write keeps it aside in
    `transformers-<release>.jsonl.damaged`.
    """

    def __init__(self, folder: Path, release: str) -> None:
        self.release = release
        self.path = folder / f"transformers-{release}.jsonl"
        self.damaged = folder / f"{self.path.name}.damaged"
        self._understood: dict[bytes, Record] = {}  # lines, which a run reads again for every cell

    def read(self) -> list[Record]:
        """All records, in the order of their keys; warns of every line that is left out."""
        return [self._understood[line] for line in self._read()[0]]

    def put(self, records: Iterable[Record]) -> None:
        """Writes records, each in place of the one with its key.

        Raises:
            RecordError: one of them could not be read again, or is of another release; nothing is
                written.
        """
        texts = {}
        for record in records:
            texts[record.key] = text = to_json(self._of_release(record))
            from_json(text)  # what could not be read again
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.parent / ".lock"):
            kept, damaged = self._read()
            if damaged:
                with self.damaged.open("ab") as aside:
                    aside.write(b"".join(line + b"\n" for line in damaged))
                    aside.flush()
                    os.fsync(aside.fileno())
            lines = {self._understood[line].key: line.decode("utf-8") for line in kept}
            merged = lines | texts
            write_atomically(self.path, "".join(f"{merged[key]}\n" for key in sorted(merged)))

    def _read(self) -> tuple[list[bytes], list[bytes]]:
        """The lines that are records, and those that are left out."""
        kept, damaged = [], []
        content = self.path.read_bytes() if self.path.exists() else b""
        for number, line in enumerate(content.split(b"\n"), start=1):
            if not line:
                continue
            try:
                if line not in self._understood:
                    self._understood[line] = self._of_release(from_json(line.decode("utf-8")))
                kept.append(line)
            except (RecordError, UnicodeDecodeError) as error:
                damaged.append(line)
                logger.warning(
                    "%s:%d is no record of this file and was left out: %s. The next run "
                    "of that cell writes it again and keeps the line in %s.",
                    self.path,
                    number,
                    error,
                    self.damaged.name,
                )
        return kept, damaged

    def _of_release(self, record: Record) -> Record:
        if record.release != self.release:
            raise RecordError(
                f"it is of transformers {record.release}, this file of {self.release}"
            )
        return record


def read_all(folder: Path) -> list[Record]:
    """The records of all releases in a folder.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of records; run `tox -e matrix` first.")
    names = sorted(path.stem for path in folder.glob("transformers-*.jsonl"))
    stores = [Store(folder, name.removeprefix("transformers-")) for name in names]
    return [record for store in stores for record in store.read()]


def write_atomically(path: Path, text: str) -> None:
    """Writes a file that is the old one or the whole new one, whenever the machine stops."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes it private; the umask of the checkout does not reach here.
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
