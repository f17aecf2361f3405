"""Find the first transformers release in which a command fails.

The command runs in an environment of each release that is tried, with the dependencies of the day
when that release came out, and torch and pytest beside it. Environments are made by uv, and kept;
UV_TORCH_BACKEND=cpu spares them what torch needs for GPUs.
Exit status 0 of the command is good and any other bad, but 125 says that it cannot be told, and the
release is passed over. pytest and python are those of the environment.

exit status: 0 if the release was found, 1 if no release between the two broke the command (it fails
in A, or works in B), 2 if the question is wrong or cannot be put: no such release or command, an
end that cannot be tried, an index that does not answer; or if something else went wrong
"""

import argparse
import os
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from rabbitllm.cli.failures import MISUSED
from rabbitllm.cli.options import positive

if TYPE_CHECKING:
    from collections.abc import Callable

    from rabbitllm.releases.environments import Environments
    from rabbitllm.releases.trial import Trial

UNANSWERED = MISUSED
"""Exit status of what went wrong: 1 is an answer."""
EXAMPLE = """\
  rabbitllm bisect --releases 5.0..newest -- pytest tests/test_wrapper.py
  rabbitllm bisect --releases 5.12.1..5.13.1 --with peft --with-editable . -- python script.py"""
FORMATS = ("text", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's arguments."""
    parser.add_argument(
        "--releases",
        required=True,
        metavar="A..B",
        help="a release that is good and a later one that is bad; 5.12, newest and main will do",
    )
    parser.add_argument("--pre", action="store_true", help="try pre-releases, too")
    parser.add_argument("--format", choices=FORMATS, default="text", help="what is printed")
    add_environments(parser)
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what is run, after --")


def add_environments(parser: argparse.ArgumentParser) -> None:
    """Declares what the environments of releases hold, and where they are kept."""
    parser.add_argument(
        "--with",
        dest="extra",
        action="append",
        default=[],
        metavar="PACKAGE",
        help="install this beside each release, such as peft or 'peft==0.18.0' (repeatable)",
    )
    parser.add_argument(
        "--with-editable",
        action="append",
        default=[],
        metavar="FOLDER",
        help="install the project in this folder, as it is (repeatable)",
    )
    parser.add_argument(
        "--environments",
        metavar="FOLDER",
        help="where they are kept (RABBITLLM_ENVIRONMENTS, or ~/.cache/rabbitllm-environments)",
    )
    parser.add_argument(
        "--timeout",
        type=positive,
        default=3600,
        metavar="SECONDS",
        help="that a release may take once it is installed; what takes longer cannot be told "
        "(%(default)s)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Runs the sub-command; returns its exit status.

    Raises:
        ValueError: the question is wrong, or cannot be put.
    """
    from rabbitllm.releases.bisection import bisect
    from rabbitllm.releases.index import ask_index
    from rabbitllm.releases.outcome import Outcome, as_json, in_words
    from rabbitllm.releases.selection import MAIN, between, ends
    from rabbitllm.releases.trial import attempt

    environments = environments_of(arguments)
    render = as_json if arguments.format == "json" else in_words
    begun = time.monotonic()
    known = ask_index(pre=arguments.pre)
    first, last = ends(arguments.releases, known)
    inside = between(known, first, "9999" if last == MAIN else last)

    def measure(release: str) -> "Trial":
        return said(
            release, lambda: attempt(release, arguments.command, environments, arguments.timeout)
        )

    try:
        good, bad = measure(first), measure(last)
        for trial in (good, bad):
            if trial.works is None:
                raise ValueError(f"{trial.release} {trial.verdict}: {trial.output.strip()}")
        outcome = Outcome(arguments.command, good, bad)
        if not good.works or bad.works:
            print(render(outcome))
            return 1
        steps = len(inside).bit_length()
        between_them = f"{len(inside)} releases lie between {first} and {last}"
        print(f"{between_them}: {steps} more to try, at most", file=sys.stderr)
        found = bisect(inside, good, bad, measure, lambda trial: trial.works)
        outcome = replace(outcome, found=found)
    except FileNotFoundError as error:
        raise ValueError(str(error)) from error  # of the question, not of this machine
    print(render(outcome))
    print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    return 0


def environments_of(arguments: argparse.Namespace) -> "Environments":
    """What `add_environments` declared.

    Raises:
        ImportError: the harness extra is not installed.
        ValueError: a folder to install holds no project.
    """
    from rabbitllm.releases.environments import Environments, default_root

    if find_spec("uv") is None:
        raise ImportError("This needs uv: python -m pip install 'rabbitllm[harness]'")
    lacking = [f for f in arguments.with_editable if not _is_project(Path(f))]
    if lacking:
        raise ValueError(f"{lacking[0]} holds no project: no pyproject.toml or setup.py is there.")
    beside = [_absolute(requirement) for requirement in arguments.extra]
    editable = [f"-e {Path(folder).resolve()}" for folder in arguments.with_editable]
    root = Path(arguments.environments).expanduser() if arguments.environments else default_root()
    return Environments(root.absolute(), (*beside, *editable))


def said(release: str, measure: "Callable[[], Trial]") -> "Trial":
    """Measures a release, and says on stderr that it does, and what came of it."""
    begun = time.monotonic()
    print(f"{release}: begun", file=sys.stderr, flush=True)
    trial = measure()
    where = trial.environment
    packages = f", with the packages of {where.day}" if where and where.day else ""
    note = f" ({where.note})" if where and where.note else ""
    why = f": {trial.output}" if where is None else ""
    seconds = time.monotonic() - begun
    print(
        f"{release}: {trial.verdict}{packages}{note}, {seconds:.0f} s{why}",
        file=sys.stderr,
        flush=True,
    )
    return trial


def _absolute(requirement: str) -> str:
    """The requirement; of a folder or file that is here, by its absolute path."""
    name, at, place = requirement.rpartition("@")
    path = Path(place.strip()).expanduser()
    named = "/" in place or os.sep in place or place.strip().endswith((".whl", ".tar.gz", ".zip"))
    named = named or place.strip() in (".", "..")
    return f"{name}{at} {path.resolve()}".strip() if named and path.exists() else requirement


def _is_project(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("pyproject.toml", "setup.py"))
