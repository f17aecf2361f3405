"""An environment for each release of transformers, made and entered by tox."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.utils import canonicalize_name

from harness.matrix import ROOT
from harness.records.provenance import PACKAGES

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
CANDIDATES = "MATRIX_CANDIDATES"
"""Environment variable that names releases which are no row of matrix/releases.toml to toxfile.py:
a JSON object, release -> requirement."""


class OrchestrationError(RuntimeError):
    """tox itself, not a cell or an environment, failed."""


@dataclass(frozen=True)
class Environment:
    """What became of a release's environment.

    Attributes:
        reason: why it could not be made; empty if it was.
        versions: as `harness.records.provenance.versions` gives them inside it.
    """

    reason: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def tox(*arguments: str) -> list[str]:
    """The command that runs tox in the environment that this process runs in."""
    return [sys.executable, "-m", "tox", *arguments]


def variables(candidates: Mapping[str, str]) -> dict[str, str]:
    """The environment variables for tox: ours, and the candidates for toxfile.py."""
    return {**os.environ, CANDIDATES: json.dumps(dict(candidates))}


def name_of(release: str, surroundings: str = "") -> str:
    """What tox calls the environment of a release, or of it in other surroundings."""
    return f"tf{release}-{surroundings}" if surroundings else f"tf{release}"


def make_environments(
    releases: Sequence[str], candidates: Mapping[str, str], surroundings: str = ""
) -> dict[str, Environment]:
    """Makes the environments of these releases in parallel; those that are up to date stay.

    Args:
        releases: of transformers.
        candidates: release -> requirement, for those that are no row of matrix/releases.toml.
        surroundings: id of a row of matrix/environments.toml; empty for the pinned ones.

    Raises:
        OrchestrationError: tox did not say what became of an environment.
    """
    names = [name_of(release, surroundings) for release in releases]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tox.json"
        options = ["--notest", "--parallel-no-spinner", "--result-json", str(report)]
        command = tox("run-parallel", "-e", ",".join(names), *options)
        made = subprocess.run(command, cwd=ROOT, env=variables(candidates), stdout=sys.stderr)
        if not report.exists():
            raise OrchestrationError(f"tox made no environment: exit status {made.returncode}")
        reported = json.loads(report.read_text("utf-8"))["testenvs"]
    environments = {}
    for release, name in zip(releases, names, strict=True):
        outcome = reported.get(name, {})
        if "result" not in outcome:
            raise OrchestrationError(f"tox did not say what became of environment {name}")
        if outcome["result"]["success"]:
            if "installed_packages" not in outcome:
                raise OrchestrationError(
                    f"tox did not list what is installed in environment {name}. Run this again; if "
                    f"that does not help, delete {ROOT / '.tox' / name}."
                )
            python = ".".join(map(str, outcome["python"]["version_info"][:3]))
            installed = versions_of(outcome["installed_packages"])
            environments[release] = Environment(versions={"python": python} | installed)
        else:
            environments[release] = Environment(reason=failure_of(outcome))
    return environments


def versions_of(requirements: Iterable[str]) -> dict[str, str]:
    """The versions of `PACKAGES` in a list such as ["torch==2.13.0+cpu", ...]."""
    pairs = (line.partition("==") for line in requirements)
    installed = {canonicalize_name(name): version for name, _, version in pairs}
    return {
        name: version for name in PACKAGES if (version := installed.get(canonicalize_name(name)))
    }


def failure_of(outcome: Mapping[str, object]) -> str:
    """What a failed step of an environment's set-up printed, from tox's own report."""
    steps = outcome.get("setup")
    failed = [step for step in steps if step["retcode"]] if isinstance(steps, list) else []
    if not failed:
        return "tox reported no failed step"
    return _ANSI.sub("", f"{failed[-1]['output']}\n{failed[-1]['err']}").strip()


def enter(
    release: str, candidates: Mapping[str, str], *arguments: str, surroundings: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs the command of a release's environment, as it is, with these arguments."""
    name = name_of(release, surroundings)
    command = tox("run", "-q", "-e", name, "--skip-env-install", "--", *arguments)
    return subprocess.run(
        command,
        cwd=ROOT,
        env=variables(candidates),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def hardware_of(
    release: str, candidates: Mapping[str, str], device: str, surroundings: str = ""
) -> str:
    """The class of this machine, as a cell in the release's environment would record it.

    Raises:
        OrchestrationError: it cannot be told, for example for want of the device.
    """
    code = f"from harness.records.provenance import hardware; print(hardware({device!r}))"
    command = tox("exec", "-qq", "-e", name_of(release, surroundings), "--", "python", "-c", code)
    done = subprocess.run(
        command, cwd=ROOT, env=variables(candidates), text=True, capture_output=True
    )
    if done.returncode:
        raise OrchestrationError(f"This machine's class is unknown: {done.stderr.strip()[-500:]}")
    return done.stdout.strip().splitlines()[-1]
