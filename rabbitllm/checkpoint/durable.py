"""Files that outlast a loss of power: written aside, flushed, renamed, and their folder flushed.

A file system may lose whatever was not flushed, and the name of a file apart from what is in it.
"""

import os
from pathlib import Path

TEMPORARY = ".partial-"
"""Begins the name of a file that is being written."""


def sync(path: Path) -> None:
    """Waits until a file's contents, or the names in a folder, are on disk."""
    if os.name == "posix":
        flags = os.O_RDONLY
    elif path.is_dir():
        return  # Windows can not open one
    else:
        flags = os.O_RDWR
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Waits until a folder is on disk: its files, their names, and its own name in its parents.

    It is not known which of the parents were newly made; those in which nothing can be made, were
    not.
    """
    for file in sorted(folder.iterdir()):
        if file.is_file():
            sync(file)
    sync(folder)
    for parent in folder.resolve().parents:
        if os.access(parent, os.R_OK | os.W_OK):
            sync(parent)


def write_durably(path: Path, text: str) -> None:
    """Puts a small file in its place, whole, whatever is there and whenever the power goes."""
    temporary = path.with_name(f"{TEMPORARY}{path.name}")
    temporary.unlink(missing_ok=True)
    with temporary.open("x", encoding="utf-8") as stream:  # "x" does not follow a planted link
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    sync(path.parent)


def forget(file: Path) -> None:
    """Takes a flushed file out of the system's cache, so that reading it reads the disk."""
    if hasattr(os, "posix_fadvise"):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
