"""What an upgrade would be to: a release, a wheel, a checkout."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from rabbitllm.releases.environments import REPOSITORY
from rabbitllm.releases.index import PACKAGE

VERSION_FILE = Path("src") / PACKAGE / "__init__.py"
VERSION = re.compile(r'^__version__ = "([^"]+)"', re.MULTILINE)


@dataclass(frozen=True)
class Target:
    """Where a transformers comes from.

    Attributes:
        release: its version.
        requirement: what installs it; empty for a row of matrix/releases.toml.
        changes: a file or folder that may hold something else tomorrow under the same version.
    """

    release: str
    requirement: str = ""
    changes: bool = False


def parse_target(text: str, listed: Sequence[str], on_index: Sequence[str]) -> Target:
    """What an argument names.

    Args:
        text: a release, a wheel, or the folder of a checkout.
        listed: the releases of matrix/releases.toml.
        on_index: those that can be installed.

    Raises:
        ValueError: it is none of these.
    """
    path = Path(text)
    if path.is_file():
        return of_wheel(path)
    if path.is_dir():
        return of_checkout(path)
    if text in listed:
        return Target(text)
    try:
        release = str(Version(text))
    except InvalidVersion:
        raise ValueError(f"{text!r} is no release, and no such wheel or folder exists.") from None
    if release not in on_index:
        near = get_close_matches(release, on_index, n=5, cutoff=0) or ["none"]
        raise ValueError(f"The index has no {PACKAGE} {release}. Near: {', '.join(near)}.")
    return Target(release, f"{PACKAGE}=={release}")


def of_wheel(path: Path) -> Target:
    """The target of a wheel.

    Raises:
        ValueError: it is none, or of another package.
    """
    try:
        name, version, _, _ = parse_wheel_filename(path.name)
    except InvalidWheelFilename as error:
        raise ValueError(f"{path} is no wheel: {error}") from error
    if name != PACKAGE:
        raise ValueError(f"{path} is a wheel of {name}, not of {PACKAGE}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    # With the digest, another wheel of the same name is another requirement.
    return Target(str(version), f"{PACKAGE} @ {path.resolve().as_uri()}#sha256={digest}", True)


def of_checkout(folder: Path) -> Target:
    """The target of a checkout, which is run from where it is.

    Raises:
        ValueError: it is none of transformers.
    """
    file = folder / VERSION_FILE
    found = VERSION.search(file.read_text("utf-8") if file.exists() else "")
    if not found:
        raise ValueError(f"{folder} is no checkout of {PACKAGE}: {file} states no __version__")
    return Target(found[1], f"-e {folder.resolve()}", True)


def of_main(repository: str = REPOSITORY) -> Target:
    """The target of the newest commit of a repository's main branch.

    Args:
        repository: as requirements write it.

    Raises:
        ValueError: it cannot be reached, or is none of transformers.
    """
    with tempfile.TemporaryDirectory() as folder:
        address = repository.removeprefix("git+")
        _git("clone", "--quiet", "--depth", "1", "--no-checkout", address, folder)
        commit = _git("-C", folder, "rev-parse", "HEAD").strip()
        text = _git("-C", folder, "show", f"HEAD:{VERSION_FILE.as_posix()}")
    found = VERSION.search(text)
    if not found:
        raise ValueError(f"{address}: {VERSION_FILE} states no __version__")
    return Target(found[1], f"{PACKAGE} @ {repository}@{commit}", True)


def _git(*arguments: str) -> str:
    """What git prints.

    Raises:
        ValueError: it failed, or there is no git.
    """
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        raise ValueError("This needs git, which is not installed.") from None
    if done.returncode:
        raise ValueError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout
