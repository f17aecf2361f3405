"""Expected failures: which failures are known, and which entries of the list are no longer true."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from harness.judging.pattern import fits
from harness.judging.tokenizers import TOKENIZER, told_apart
from harness.matrix import MATRIX, Cell, Device, Key
from harness.records import FAILED, OF_STOCK, Record, read_all
from harness.tables import read_rows, unknown

PLACE = "matrix/expected_failures.toml"


@dataclass(frozen=True)
class Expected:
    """One row of matrix/expected_failures.toml.

    Attributes:
        architecture: pattern as in a shell, over ids; several are separated by |.
        backend: pattern as in a shell; "tokenizer" for what is no model's.
        device: likewise.
        transformers: release range, such as ">=5.21.1".
        exception: type name of what is raised; empty if a check fails without.
        message: text found in the message, see `harness.judging.pattern`; several texts, of
            which one is found, are separated by |.
        side: whose fault it is.
        why: the cause.
        link: where it is discussed, by https.
        expires: from this day on the entry fails the run, to be looked at again.
    """

    architecture: str
    backend: str
    transformers: str
    exception: str
    message: str
    side: Literal["rabbitllm", "transformers", "environment"]
    why: str
    link: str
    expires: date
    device: str = "*"

    def __post_init__(self) -> None:
        """Checks what types do not say.

        Raises:
            ValueError: naming the field that is wrong, and how.
        """
        for field in ("architecture", "backend", "why"):
            if not getattr(self, field).strip():
                raise ValueError(f"{field}: is empty")
        if not all(text.replace("*", "").strip() for text in self.message.split("|")):
            raise ValueError("message: would be found in every message")
        if self.exception and not self.exception.isidentifier():
            raise ValueError(f"exception: expected the name of a type, got {self.exception!r}")
        if not any(fnmatchcase(device, self.device) for device in get_args(Device)):
            raise ValueError(f"device: {unknown('device', self.device, get_args(Device))}")
        if not re.fullmatch(r"https://[^\s/]\S*", self.link):
            raise ValueError(f"link: expected an https address, got {self.link!r}")
        try:
            SpecifierSet(self.transformers)
        except InvalidSpecifier as error:
            raise ValueError(f"transformers: {error}") from error

    @property
    def name(self) -> str:
        """What error messages call the entry."""
        return f"{self.architecture}/{self.backend} on {self.transformers}"

    def selects(self, key: Key, release: str) -> bool:
        """Whether a cell is one that the entry speaks of."""
        architecture, backend, device = key
        if (backend == TOKENIZER) != (self.backend == TOKENIZER):
            return False
        return (
            any(fnmatchcase(architecture, one.strip()) for one in self.architecture.split("|"))
            and fnmatchcase(backend, self.backend)
            and fnmatchcase(device, self.device)
            and SpecifierSet(self.transformers).contains(release, prereleases=True)
        )

    def explains(self, exception: str, message: str) -> bool:
        """Whether a failure is the one that the entry expects."""
        texts = (text.strip() for text in self.message.split("|"))
        return exception == self.exception and any(fits(text, message) for text in texts)


def load_expected(folder: Path = MATRIX) -> tuple[Expected, ...]:
    """The list.

    Raises:
        TableError: it is not as `Expected` says.
    """
    return read_rows(Expected, folder / "expected_failures.toml", "expected", key=None)


def judge(record: Record, entries: Iterable[Expected]) -> Record:
    """The record with the list's word on it.

    A failure that entries explain in full becomes xfail, or stays as it is if it is stock's own;
    a pass that an entry does not expect becomes xpass. Anything else stays as it is, and fails
    the run if it is a failure.
    """
    selecting = _selecting(record, entries)
    if record.status == "pass" and selecting:
        message = f"{PLACE}, {selecting[0].name}: passes now; remove the entry or end its range"
        return replace(record, status="xpass", message=message)
    explaining = entries_for(record, selecting) if record.status in FAILED else ()
    if not explaining:
        return record
    why = " ".join(dict.fromkeys(f"{e.why} ({e.side}; {e.link})" for e in explaining))
    status = record.status if record.status in OF_STOCK else "xfail"
    return replace(record, status=status, expected=why)


def entries_for(record: Record, entries: Iterable[Expected]) -> tuple[Expected, ...]:
    """The entries that explain a cell's failures; none unless they explain all of them."""
    selecting = _selecting(record, entries)
    found = [
        next((e for e in selecting if e.explains(*failure)), None) for failure in failures(record)
    ]
    explaining = [entry for entry in found if entry is not None]
    return tuple(dict.fromkeys(explaining)) if len(explaining) == len(found) else ()


def load_judged(results: Path) -> list[Record]:
    """The records of all releases in a folder, judged by the list of expected failures.

    Raises:
        FileNotFoundError: there is no such folder.
        TableError: the list is not as `Expected` says.
    """
    expected = load_expected()
    return [judge(record, expected) for record in told_apart(read_all(results))]


def failures(record: Record) -> list[tuple[str, str]]:
    """Exception and message of everything that failed in a cell."""
    failed = [
        (result.exception, result.message)
        for result in record.checks.values()
        if result.status in FAILED
    ]
    return failed or [(record.exception, record.message)]


def fails_run(record: Record) -> bool:
    """Whether a judged record fails the run."""
    return record.status == "xpass" or (record.status in FAILED and not record.expected)


def problems(entries: Sequence[Expected], cells: Sequence[Cell], today: date) -> list[str]:
    """What is wrong with the list: entries past expiry, or that select no cell.

    Args:
        entries: the list.
        cells: the whole matrix, whatever part of it runs.
        today: the day that expiry is judged by.
    """
    found = []
    for entry in entries:
        if entry.expires <= today:
            found.append(f"{PLACE}, {entry.name}: expired on {entry.expires}; look again")
        if not any(
            entry.selects(key, cell.release)
            for cell in cells
            for key in (cell.key, tokenizer(cell))
        ):
            found.append(f"{PLACE}, {entry.name}: matches no cell of the matrix")
    return found


def tokenizer(cell: Cell) -> Key:
    """What the record of its tokenizer has for a key, see `harness.judging.tokenizers`."""
    return cell.architecture.id, TOKENIZER, "cpu"


def _selecting(record: Record, entries: Iterable[Expected]) -> list[Expected]:
    return [entry for entry in entries if entry.selects(record.key, record.release)]
