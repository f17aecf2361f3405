"""The name of a cell, as users type it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from harness.judging.tokenizers import TOKENIZER
from harness.matrix import DEFAULT_BACKEND, Key, cell_id
from harness.records import Record

SHAPE = "ARCHITECTURE[@RELEASE]/BACKEND[/DEVICE], such as qwen2@5.24.0/sdpa/cpu"
_PARTS = re.compile(
    r"(?P<arch>[^@/\s]+)(@(?P<release>[^@/\s]+))?/(?P<backend>[^@/\s]+)(/(?P<device>cpu|cuda))?"
)


@dataclass(frozen=True)
class CellName:
    """A cell of one release, or of all.

    Attributes:
        architecture: id.
        release: of transformers; empty for any.
        backend: id.
        device: cpu unless it says otherwise.
    """

    architecture: str
    release: str
    backend: str
    device: str

    def __str__(self) -> str:
        """The name, without a release if it is of all."""
        return cell_id(self.key, self.release)

    @property
    def key(self) -> Key:
        """The name without its release."""
        return self.architecture, self.backend, self.device

    @property
    def command(self) -> str:
        """The line that measures the cell, in the environment of its release."""
        release = f"--releases {self.release} " if self.release else ""
        backend = DEFAULT_BACKEND if self.backend == TOKENIZER else self.backend
        return (
            f"tox -e matrix -- {release}--arch {self.architecture} --attn {backend}"
            f" --device {self.device}"
        )

    def names(self, record: Record) -> bool:
        """Whether a record is of this cell."""
        return record.key == self.key and self.release in ("", record.release)


def parse_cell(text: str) -> CellName:
    """What a name means.

    Raises:
        ValueError: it is not of that shape.
    """
    found = _PARTS.fullmatch(text.strip())
    if not found:
        raise ValueError(f"{text!r} is no name of a cell: {SHAPE}")
    return CellName(
        found["arch"], found["release"] or "", found["backend"], found["device"] or "cpu"
    )


def find(name: CellName, records: Iterable[Record], place: str) -> list[Record]:
    """The records of a cell.

    Args:
        name: which.
        records: to look in.
        place: where these are, for the message.

    Raises:
        ValueError: there are none; the message has the nearest names that there are.
    """
    known = list(records)
    found = [record for record in known if name.names(record)]
    if found:
        return found
    cells = dict.fromkeys(record.cell if name.release else cell_id(record.key) for record in known)
    near = get_close_matches(str(name), cells, n=4, cutoff=0.5)
    hint = f" Near: {', '.join(near)}." if near else ""
    raise ValueError(f"{place} has no record of {name}.{hint} Measure it: {name.command}")


def again(cell: str) -> str:
    """The line that measures a cell again, though its record is current."""
    return f"{parse_cell(cell).command} --force"
