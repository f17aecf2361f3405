"""Where transformers' tests come from: the source of a release, which is copied nowhere."""

from __future__ import annotations

import re
import shutil
import tarfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

ADDRESS = "https://github.com/huggingface/transformers/archive/refs/tags/v{release}.tar.gz"
"""Of a release's source: the distribution on the package index lacks most of the tests."""
TIMEOUT = 60.0
"""Seconds without a byte after which a download fails."""


@contextmanager
def source(place: Path | None, release: str) -> Iterator[Path]:
    """The folder of transformers' source, whose `tests` are in it.

    Args:
        place: a folder, or an archive of one; None fetches the release's.
        release: of transformers, such as "5.24.0".

    Raises:
        FileNotFoundError: the place does not exist, or holds no tests of models.
    """
    if place is not None and place.is_dir():
        yield root_of(place)
        return
    with TemporaryDirectory(prefix="transformers-") as folder:
        archive = place or _fetched(release, Path(folder))
        with tarfile.open(archive) as packed:
            packed.extractall(Path(folder) / "source", filter="data")
        yield root_of(Path(folder) / "source")


def root_of(folder: Path) -> Path:
    """The folder with `tests/models`: this one, or the only one inside it.

    Raises:
        FileNotFoundError: there is none.
    """
    for path in (folder, *sorted(folder.iterdir())):
        if (path / "tests" / "models").is_dir():
            return path.resolve()
    raise FileNotFoundError(
        f"{folder} holds no tests/models. The tests of a release are in its source: "
        f"{ADDRESS.format(release='5.24.0')}"
    )


def version_of(folder: Path) -> str:
    """The version that a source says it is; "unknown" if it does not."""
    path = folder / "src" / "transformers" / "__init__.py"
    text = path.read_text("utf-8") if path.exists() else ""
    found = re.search(r'^__version__ = "([^"]+)"', text, re.MULTILINE)
    return found[1] if found else "unknown"


def _fetched(release: str, folder: Path) -> Path:
    path = folder / "source.tar.gz"
    address = ADDRESS.format(release=release)
    print(f"fetching {address}", flush=True)
    with urllib.request.urlopen(address, timeout=TIMEOUT) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
    return path
