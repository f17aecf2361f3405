"""What the package index knows: releases, when one came, and what it was installed with then."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

PACKAGE = "transformers"
SETTINGS = "# uv looks no further: what runs here is of releases, not of a project.\n[tool.uv]\n"
"""Of a folder that uv runs in."""


class NoDateError(ValueError):
    """The index has a release, but does not say when it came out."""


def ask_index(pre: bool) -> list[str]:
    """Every version of transformers on the package index that pip is configured for.

    Args:
        pre: pre-releases too.

    Raises:
        ValueError: there was no answer.
    """
    # A release that the running Python is too old for is a release all the same.
    options = ["--json", "--ignore-requires-python", *(["--pre"] if pre else [])]
    command = [sys.executable, "-m", "pip", "index", "versions", PACKAGE, *options]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode:
        said = asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"]
        raise ValueError(
            f"pip could not list the releases of {PACKAGE}: {said[-1]}. This needs pip 25.1 or "
            "newer, and a network."
        )
    versions: list[str] = json.loads(asked.stdout)["versions"]
    return versions


def uv(*arguments: str, folder: Path, given: str = "") -> subprocess.CompletedProcess[str]:
    """Runs uv in a folder of its own.

    Where the user is, a project's constraints and overrides would rule, which are none of a
    release's.

    Args:
        arguments: of the command.
        folder: that it runs in, which is made, and where uv finds `SETTINGS`.
        given: what it reads from stdin.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "pyproject.toml"
    with FileLock(folder / ".lock"):  # another process's uv may be reading what stands there
        if not settings.is_file() or settings.read_text("utf-8") != SETTINGS:
            settings.write_text(SETTINGS, "utf-8")
    command = [sys.executable, "-m", "uv", *arguments]
    return subprocess.run(command, cwd=folder, input=given, capture_output=True, text=True)


def upload_date(version: str, folder: Path) -> str:
    """The day when a release of transformers came out, such as "2026-10-26", in UTC.

    Args:
        version: of transformers.
        folder: that uv runs in.

    Raises:
        NoDateError: the index tells no dates.
        ValueError: the index was not reached, or has no such release.
    """
    locked = _compile(version, folder, "--no-deps", "--format", "pylock.toml")
    days = re.findall(r"upload-time = (\d{4}-\d\d-\d\d)T", locked)
    if not days:
        raise NoDateError(f"The index does not say when {PACKAGE} {version} came out.")
    return str(max(days))


def of_its_time(version: str, folder: Path) -> tuple[str, str]:
    """The day of a release, and the requirements that it was installed with on that day.

    Those are its own dependencies; torch is none of them and stays the one of all environments.

    Args:
        version: of transformers.
        folder: that uv runs in.

    Raises:
        NoDateError: the index tells no dates.
        ValueError: the index was not reached, or has no such release.
    """
    day = upload_date(version, folder)
    end = f"{day}T23:59:59Z"  # a day alone ends where the machine's time zone has it
    options = ("--exclude-newer", end, "--no-header", "--no-annotate")
    return day, _compile(version, folder, *options).strip()


def _compile(version: str, folder: Path, *options: str) -> str:
    command = ("pip", "compile", "--quiet", *options, "-")
    asked = uv(*command, folder=folder, given=f"{PACKAGE}=={version}")
    if asked.returncode:
        said = " ".join(asked.stderr.split()) or f"exit status {asked.returncode}"
        raise ValueError(f"uv could not resolve {PACKAGE}=={version}: {said}")
    return asked.stdout
