"""Environments for the compatibility matrix, made from matrix/*.toml and pyproject.toml.

tox loads this file as a plugin. For each release of transformers it adds an environment such as
`tf5.0.0`, labelled `cells`, that holds the package's dependencies, the harness and that release;
for each row of matrix/environments.toml one such as `tf5.0.0-lowest`, labelled `environments`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tox.config.loader.memory import MemoryLoader
from tox.config.types import Command
from tox.plugin import impl

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tox.config.sets import ConfigSet
    from tox.session.state import State

ROOT = Path(__file__).resolve().parent
CELL_COMMAND = ("python", "-m", "pytest", "-q", "--no-header", "matrix/test_cells.py")
CELL_EXTRAS = ("harness", "smollm2")
LIGHT_ENVIRONMENTS = (
    "ahead",
    "canary",
    "docs",
    "environments",
    "harness",
    "matrix",
    "releases",
    "render",
    "upgrade-check",
)
NEWEST_ENVIRONMENTS = (
    "test",
    "lint",
    "ecosystem",
    "outputs",
    "sweep",
    "upstream",
    "golden",
    "package",
)


def read_toml(path: Path) -> dict[str, Any]:
    """The contents of a TOML file."""
    return tomllib.loads(path.read_text(encoding="utf-8"))


def releases(root: Path = ROOT) -> list[str]:
    """The transformers releases of the matrix, in the order of matrix/releases.toml."""
    return [row["version"] for row in read_toml(root / "matrix" / "releases.toml")["release"]]


def surroundings(root: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Name of an environment -> its row of matrix/environments.toml."""
    rows = read_toml(root / "matrix" / "environments.toml")["environment"]
    return {f"tf{row['release']}-{row['id']}": row for row in rows}


def newest(root: Path = ROOT) -> str:
    """The requirement for the newest release in the table.

    Tests run on what the matrix measures, so a release that appears overnight does not turn them
    red. Python 3.10, which releases from 5.21 refuse, gets the newest that takes it.
    """
    return f"transformers=={releases(root)[-1]}; python_version >= '3.11'"


def requirements(*extras: str, root: Path = ROOT) -> list[str]:
    """The requirements that pyproject.toml lists under these extras."""
    listed = read_toml(root / "pyproject.toml")["project"]["optional-dependencies"]
    return [requirement for extra in extras for requirement in listed[extra]]


def candidates() -> dict[str, str]:
    """Release -> requirement of releases beside the table, which the harness asks for."""
    return dict(json.loads(os.environ.get("MATRIX_CANDIDATES", "{}")))


def cell_environment(
    release: str,
    requirement: str = "",
    arguments: Sequence[str] = (),
    root: Path = ROOT,
    extras: Sequence[str] = CELL_EXTRAS,
) -> dict[str, Any]:
    """The tox settings of the environment that measures one release of transformers.

    Everything is one list of requirements, so that uv resolves it at once: an old release then
    gets the huggingface_hub and tokenizers that it accepts. The package itself is run from the
    checkout, which spares a build for each environment. `requirement` is where the release comes
    from if not from the index, and what else it needs; `arguments` follow the pytest command;
    `extras` are those of pyproject.toml that the environment holds.
    """
    package = read_toml(root / "pyproject.toml")["project"]["dependencies"]
    deps = [
        *package,
        *requirements(*extras, root=root),
        requirement or f"transformers=={release}",
    ]
    return {
        "description": f"run cells of the matrix with transformers {release}",
        "labels": {"cells"},
        "package": "skip",
        "deps": "\n".join(deps),
        "set_env": f"PYTHONPATH={root}",
        "commands": [Command([*CELL_COMMAND, "--release", release, *arguments])],
    }


def surrounded_environment(
    row: dict[str, Any], arguments: Sequence[str] = (), root: Path = ROOT
) -> dict[str, Any]:
    """The settings of the environment of a row of matrix/environments.toml.

    Its packages are not those that [tool.uv] in pyproject.toml pins, so uv does not read that.
    """
    torch = [f"torch=={row['torch']}"] if row.get("torch") else []
    requirement = "\n".join([f"transformers=={row['release']}", *torch])
    resolution = "lowest-direct" if row.get("lowest") else "highest"
    return cell_environment(row["release"], requirement, arguments, root, ("harness",)) | {
        "description": f"run cells with transformers {row['release']}: {row['id']}",
        "labels": {"environments"},
        "base_python": [f"python{row['python']}"],
        "set_env": f"PYTHONPATH={root}\nUV_NO_CONFIG=1\nUV_RESOLUTION={resolution}",
    }


@impl
def tox_extend_envs() -> list[str]:
    """Names one environment for each release, and one for each row of other surroundings."""
    listed = [f"tf{release}" for release in dict.fromkeys([*releases(), *candidates()])]
    return [*listed, *surroundings()]


@impl
def tox_add_core_config(core_conf: ConfigSet, state: State) -> None:
    """Gives the environments their settings, and uv the wheels that pip was pointed at."""
    if "PIP_FIND_LINKS" in os.environ:
        # pip separates places by spaces, uv by commas.
        os.environ.setdefault("UV_FIND_LINKS", ",".join(os.environ["PIP_FIND_LINKS"].split()))
    loaders = state.conf.memory_seed_loaders
    extra = candidates()
    for release in dict.fromkeys([*releases(), *extra]):
        arguments = state.conf.pos_args(None) or ()
        requirement = extra.get(release, "")
        settings = cell_environment(release, requirement, arguments)
        if requirement:
            # A folder of its own, so that the table's environment of that release stays as it is.
            mark = hashlib.sha256(requirement.encode()).hexdigest()[:8]
            settings["env_dir"] = core_conf["work_dir"] / f"tf{release}-{mark}"
        loaders[f"tf{release}"].append(MemoryLoader(**settings))
    for name, row in surroundings().items():
        settings = surrounded_environment(row, state.conf.pos_args(None) or ())
        loaders[name].append(MemoryLoader(**settings))
    for name in LIGHT_ENVIRONMENTS:
        loaders[name].append(MemoryLoader(deps="\n".join(requirements("harness"))))
    for name in NEWEST_ENVIRONMENTS:
        loaders[name].append(MemoryLoader(deps=newest()))
