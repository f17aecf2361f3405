"""An environment for each release of transformers, made by uv and kept for the next time."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock
from packaging.version import InvalidVersion, Version

from rabbitllm.releases.index import PACKAGE, NoDateError, of_its_time, uv
from rabbitllm.releases.selection import MAIN
from rabbitllm.utils.installed import version_of

VARIABLE = "RABBITLLM_ENVIRONMENTS"
"""Environment variable that names the folder in which environments are kept."""
REPOSITORY = "git+https://github.com/huggingface/transformers"
ALWAYS = ("pytest", "torch")
"""What an environment holds besides the release."""
PINNED = "requirements.txt"
"""File of an environment: the release, and what it was installed with on its day."""
STAMP = "installed"
"""File of an environment that is whole."""
WHICH = f"""
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path
file = find_spec("{PACKAGE}").origin
print(file)
print(*(d.version for d in distributions(name="{PACKAGE}", path=[str(Path(file).parent.parent)])))
"""
"""Prints where a process would import the package from, and of which version that is."""

logger = logging.getLogger(__name__)


class UnavailableError(ValueError):
    """An environment could not be made; or holds another release; the message says why."""


@dataclass(frozen=True)
class Environment:
    """Where a release is installed.

    Attributes:
        release: of transformers.
        folder: a virtual environment.
        day: that whose dependencies it has, such as "2026-07-03"; empty where that is today.
        note: what of this is not as one would expect; empty where all is.
    """

    release: str
    folder: Path
    day: str = ""
    note: str = ""

    @property
    def bin(self) -> Path:
        """The folder of its commands."""
        return self.folder / ("Scripts" if os.name == "nt" else "bin")

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables of a process that runs in it."""
        path = os.pathsep.join([str(self.bin), os.environ.get("PATH", os.defpath)])
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONHOME"}
        return kept | {"VIRTUAL_ENV": str(self.folder), "PATH": path}


def default_root() -> Path:
    """Where environments are kept unless another folder is named."""
    return Path(os.environ.get(VARIABLE) or "~/.cache/rabbitllm-environments").expanduser()


@dataclass(frozen=True)
class Environments:
    """The environments of some requirements.

    Attributes:
        root: the folder in which they are kept.
        extra: what they hold besides the release, torch and pytest: requirements, and "-e FOLDER".
    """

    root: Path
    extra: Sequence[str] = ()

    def make(self, release: str) -> Environment:
        """The environment of a release; what is missing from it is installed.

        Args:
            release: a version, or `MAIN`, which is installed anew each time.

        Raises:
            UnavailableError: it cannot be installed, such as for want of a newer Python.
        """
        wanted = self._wanted()
        mark = hashlib.sha256("\n".join([sys.version, *wanted]).encode()).hexdigest()[:8]
        folder = self.root / f"tf{release}-{mark}"
        self.root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            stamp = folder / STAMP
            if not stamp.is_file():
                logger.info("%s: making its environment, %s", release, folder)
                self._uv("venv", "--quiet", "--clear", "--python", sys.executable, str(folder))
            day, note = self._pin(release, folder / PINNED)
            arguments = ["--requirements", str(folder / PINNED), *_arguments(wanted)]
            again = ["--reinstall-package", PACKAGE] if release == MAIN else []
            stamp.unlink(missing_ok=True)
            self._uv("pip", "install", "--quiet", "--python", str(folder), *again, *arguments)
            stamp.touch()
        made = Environment(release, folder, day, note)
        self._refuse_another(made)
        return made

    def _uv(self, *arguments: str) -> None:
        done = uv(*arguments, folder=self.root)
        if done.returncode:
            said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
            raise UnavailableError(f"uv could not make the environment: {said}")

    def _refuse_another(self, made: Environment) -> None:
        """Raises UnavailableError if a process in the environment gets another transformers."""
        asked = subprocess.run(
            [made.bin / "python", "-c", WHICH],
            cwd=self.root,
            env=made.variables,
            capture_output=True,
            text=True,
        )
        if asked.returncode:
            said = asked.stderr.strip().splitlines()[-1:] or [f"exit status {asked.returncode}"]
            raise UnavailableError(f"the environment's Python finds no {PACKAGE}: {said[0]}")
        file, version = asked.stdout.splitlines()[-2:]
        inside = Path(file).parent.resolve().is_relative_to(made.folder.resolve())
        if not inside or made.release not in (MAIN, _normal(version)):
            raise UnavailableError(
                f"{file} (version {version or 'unknown'}) is imported instead of {PACKAGE} "
                f"{made.release}: see to PYTHONPATH, and to what is installed beside the release."
            )

    def _wanted(self) -> list[str]:
        """The requirements besides the release: the torch that runs here, of which one copy does.

        Releases are then compared on the same kernels.
        """
        torch = version_of("torch").partition("+")[0]
        return [f"torch=={torch}" if torch and n == "torch" else n for n in ALWAYS] + [*self.extra]

    def _pin(self, release: str, file: Path) -> tuple[str, str]:
        """Writes the release and its dependencies to `file`; their day, and a note."""
        if release == MAIN:
            file.write_text(f"# \n{PACKAGE} @ {REPOSITORY}\n", "utf-8")
        elif not file.is_file():
            try:
                day, requirements = of_its_time(release, self.root)
            except NoDateError:
                day, requirements = "", f"{PACKAGE}=={release}"
            except ValueError as error:
                raise UnavailableError(str(error)) from error
            new = file.with_suffix(".new")
            new.write_text(f"# {day}\n{requirements}\n", "utf-8")
            new.replace(file)
        day = file.read_text("utf-8").partition("\n")[0].removeprefix("#").strip()
        undated = f"the index has no date of {release}: its dependencies are today's"
        return day, "" if day or release == MAIN else undated


def _arguments(wanted: Sequence[str]) -> list[str]:
    """The requirements as uv takes them."""
    editable = [part for w in wanted if w.startswith("-e ") for part in ("-e", w[3:].strip())]
    return [*(w for w in wanted if not w.startswith("-e ")), *editable]


def _normal(version: str) -> str:
    """A version as the index writes it."""
    try:
        return str(Version(version))
    except InvalidVersion:
        return version
