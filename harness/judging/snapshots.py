"""What `diff A B` compares: a release, a folder of records, or the records of a git revision."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.judging.tokenizers import told_apart
from harness.matrix import ROOT
from harness.records import Record, Store, read_all

GIT = "git:"
COMMITTED = "reports/results"


@dataclass(frozen=True)
class Side:
    """One of two things that are compared.

    Attributes:
        name: as the user wrote it.
        records: raw, of all releases that it holds, tokenizers told apart.
    """

    name: str
    records: tuple[Record, ...]


def load_side(text: str, results: Path) -> Side:
    """The records that an argument names.

    Args:
        text: a release that has records in `results`; a folder of records, or of reports with the
            folder results in it; or "git:" and a revision, for the records committed there.
        results: the folder of records where releases are looked up.

    Raises:
        ValueError: it is none of these, or holds no records; the message lists the releases.
    """
    if text.startswith(GIT):
        records = of_revision(text.removeprefix(GIT))
    elif Path(text).is_dir():
        below = Path(text) / "results"
        records = read_all(below if below.is_dir() else Path(text))
    else:
        records = Store(results, text).read() or _unknown(text, results)
    if not records:
        raise ValueError(f"{text} holds no records (transformers-*.jsonl).")
    return Side(text, tuple(told_apart(records)))


def of_revision(revision: str) -> list[Record]:
    """The records committed in a revision of this checkout.

    Raises:
        ValueError: git does not know it, or it has none.
    """
    # After "--end-of-options" a revision such as "--output=x" is a revision.
    command = ["git", "archive", "--end-of-options", revision, COMMITTED]
    packed = subprocess.run(command, cwd=ROOT, capture_output=True)
    if packed.returncode:
        said = packed.stderr.decode("utf-8", "replace").strip()
        raise ValueError(f"git has no {COMMITTED} of {revision!r}: {said}")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(folder, filter="data")
        return read_all(Path(folder) / COMMITTED)


def recorded_releases(results: Path) -> list[str]:
    """The releases that a folder has records of, as text sorts them."""
    names = (path.stem for path in results.glob("transformers-*.jsonl"))
    return sorted(name.removeprefix("transformers-") for name in names)


def _unknown(text: str, results: Path) -> list[Record]:
    listed = ", ".join(recorded_releases(results)) or "none"
    raise ValueError(
        f"{text!r} is neither a folder nor a release with records in {results} (it has {listed}). "
        f"Measure it first: tox -e matrix -- --releases {text}"
    )
