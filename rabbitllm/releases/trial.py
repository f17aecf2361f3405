"""A command, run in the environment of a release."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rabbitllm.releases.environments import Environment, Environments, UnavailableError

SKIP = 125
"""Exit status by which a command says that it cannot tell, as for `git bisect run`."""
FOREIGN = re.compile(rb"#!\s*/\S*python[\d.]*\s*$")
"""First line of a script that runs with one Python; /usr/bin/env takes that of the environment."""
KILLED = -9
"""That of a process that the system ended for want of memory, say: it tells nothing."""


@dataclass(frozen=True)
class Trial:
    """What became of a command in a release.

    Attributes:
        release: of transformers.
        status: its exit status, negative for a signal; None where it did not run, or took too long.
        output: what it printed, stdout and stderr in turns; or why it did not run.
        environment: that it ran in.
    """

    release: str
    status: int | None
    output: str
    environment: Environment | None = None

    @property
    def works(self) -> bool | None:
        """Whether the command succeeded; None if that cannot be told."""
        return None if self.status in (None, SKIP, KILLED) else self.status == 0

    @property
    def verdict(self) -> str:
        """In words, such as "bad (exit status 1)"."""
        if self.status is None:
            return "cannot be told" if self.environment else "cannot be tried"
        word = {True: "good", False: "bad", None: "cannot be told"}[self.works]
        return word if self.works else f"{word} (exit status {self.status})"


def attempt(
    release: str, command: Sequence[str], environments: Environments, timeout: float = 3600
) -> Trial:
    """Runs a command in the environment of a release, for as many seconds at most.

    Raises:
        FileNotFoundError: there is no such command; `filename` names it.
        ValueError: it belongs to another environment, so that another release would run.
    """
    try:
        environment = environments.make(release)
    except UnavailableError as error:
        return Trial(release, None, str(error))
    program = find(command[0], environment)
    try:
        done = subprocess.run(
            [program, *command[1:]],
            env=environment.variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        late = f"It took longer than {timeout:.0f} s (--timeout)."
        return Trial(release, None, late, environment)
    return Trial(release, done.returncode, done.stdout, environment)


def find(name: str, environment: Environment) -> str:
    """The path of a program as the environment has it.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is a script that another environment's Python runs.
    """
    program = shutil.which(name, path=environment.variables["PATH"])
    if program is None:
        raise FileNotFoundError(
            f"There is no command {name!r}. If a package brings it: --with PACKAGE."
        )
    inside = Path(program).parent == environment.bin
    with Path(program).open("rb") as file:
        first = file.readline(200)
    if not inside and FOREIGN.match(first):
        raise ValueError(
            f"{program} runs in another environment, with that one's transformers. Have its "
            "package installed beside each release (--with PACKAGE), or name the script: "
            f"python {program}"
        )
    return program
