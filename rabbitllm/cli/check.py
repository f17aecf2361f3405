"""Check a checkpoint over transformers releases: what it gives, and since when it does not.

In an environment of each release: does it load, with all its weights; are logits, greedy tokens,
token ids and chat text those of the first good release; do attention backends agree, and logits
with and without a cache. What is right is kept in a file, which is for committing. Where a check
breaks, the releases between are tried until the first bad one is known. A range means the newest
patch of each minor. Code in the checkpoint runs only with --trust-remote-code.

Environments are made by uv, and kept; UV_TORCH_BACKEND=cpu spares them what torch needs for GPUs.

exit status: 0 if every release is good, 1 if one is bad, 2 if the question is wrong or something
else went wrong, 3 if none is bad and one could not be installed or told
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rabbitllm.checkpoint.durable import write_durably
from rabbitllm.cli.bisect import add_environments, environments_of
from rabbitllm.cli.failures import MISUSED
from rabbitllm.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rabbitllm.releases.checkup import Break, Checkup, Row
    from rabbitllm.releases.report import Report

UNANSWERED = MISUSED
"""Exit status of what went wrong: 1 is an answer."""
EXAMPLE = """\
  rabbitllm check ./my-model --releases 5.0..newest --trust-remote-code
  rabbitllm check my/model-70b --releases 5.0,5.12,newest,main --shrink --reports reports"""
STATUSES = {"good": 0, "bad": 1, "not-run": 3}
BACKENDS = (
    "eager",
    "flash_attention_2",
    "flash_attention_3",
    "flash_attention_4",
    "flex_attention",
    "sdpa",
)
"""Attention backends of a release, which need not be the one that runs here."""
FORMATS = ("md", "html", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the sub-command's arguments."""
    parser.add_argument("model", metavar="REPO_OR_FOLDER", help="a folder, or a hub repository")
    parser.add_argument(
        "--releases",
        default="5.0..newest",
        metavar="LIST",
        help="ranges and releases joined by commas; also newest and main (default: 5.0..newest)",
    )
    parser.add_argument("--pre", action="store_true", help="check the newest pre-release, too")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run the checkpoint's code"
    )
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument(
        "--attn",
        type=lambda text: [name.strip() for name in text.split(",") if name.strip()],
        default=["eager", "sdpa"],
        metavar="LIST",
        help="backends that are compared with the default one (default: eager,sdpa)",
    )
    parser.add_argument(
        "--shrink",
        action="store_true",
        help="tiny layers of the real config with seeded random weights; weights are not read",
    )
    parser.add_argument(
        "--golden",
        type=Path,
        default=Path("rabbitllm-golden.json"),
        metavar="FILE",
        help="what is right; made if it is not there (default: rabbitllm-golden.json)",
    )
    parser.add_argument("--format", choices=FORMATS, default="md", help="what is printed")
    parser.add_argument(
        "--reports",
        type=Path,
        metavar="FOLDER",
        help="also write check.md, check.html, check.json, a badge, and issue.md if a release's "
        "status is another than in the check.json that is there",
    )
    add_environments(parser)


def main(arguments: argparse.Namespace) -> int:
    """Runs the sub-command; returns its exit status.

    Raises:
        CheckpointError: there is no such model.
        ValueError: the question is wrong, or the golden file is of another model.
    """
    from rabbitllm.releases import golden
    from rabbitllm.releases.checkup import Checkup
    from rabbitllm.releases.index import ask_index
    from rabbitllm.releases.report import as_json
    from rabbitllm.releases.selection import select

    environments = environments_of(arguments)
    _refuse_unknown(arguments.attn)
    known = ask_index(pre=arguments.pre)
    releases = select(arguments.releases, known, arguments.pre)
    _refuse_old(releases)
    folder = _folder(arguments)
    recipe = {
        "checkpoint": golden.digest(folder, weights=not arguments.shrink),
        "dtype": arguments.dtype,
        "shrunk": arguments.shrink,
    }
    right = golden.read(arguments.golden, recipe)
    before = _earlier(arguments.reports)
    for place in filter(None, (arguments.golden.absolute().parent, arguments.reports)):
        _refuse_closed(place)
    several = f"{len(releases)} releases, {releases[0]} to {releases[-1]}"
    print(several if releases[1:] else f"1 release, {releases[0]}", file=sys.stderr)
    with ExitStack() as stack:
        if arguments.shrink:
            folder = _shrunk(folder, Path(stack.enter_context(tempfile.TemporaryDirectory())))
        question = _question(arguments, folder)
        say = _sayer()

        def keep(row: "Row") -> None:
            """What is known is kept, whatever ends the command."""
            say(row)
            if checkup.golden and not arguments.golden.exists():
                golden.write(checkup.golden, arguments.golden)
                print(f"What is right is in {arguments.golden}: commit it.", file=sys.stderr)
            if arguments.reports:
                write_durably(arguments.reports / "check.json", as_json(_found(arguments, checkup)))

        checkup = Checkup(question, environments, recipe, right, keep, arguments.timeout)
        for release in releases:
            checkup.measure(release)
        breaks = checkup.breaks(known)
    found = _found(arguments, checkup, breaks)
    _publish(found, arguments, before)
    return STATUSES[found.status]


def _found(
    arguments: argparse.Namespace, checkup: "Checkup", breaks: "Sequence[Break]" = ()
) -> "Report":
    from rabbitllm.releases.report import Report
    from rabbitllm.releases.selection import in_order

    by = checkup.golden.release if checkup.golden else ""
    rows = [checkup.rows[release] for release in in_order(checkup.rows)]
    return Report(arguments.model, arguments.dtype, arguments.shrink, by, rows, breaks)


def _refuse_unknown(backends: list[str]) -> None:
    """Raises ValueError for a name that is no attention backend's; kernels of the hub have a /."""
    named = [name for name in backends if name not in BACKENDS and "/" not in name]
    if not named:
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = sorted({*BACKENDS, *ALL_ATTENTION_FUNCTIONS.valid_keys()})
    for name in named:
        if name not in known:
            raise ValueError(f"--attn {name}: there is no such backend.{nearest(name, known)}")


def _refuse_old(releases: list[str]) -> None:
    """Raises ValueError for a release of an older major."""
    from packaging.version import Version

    from rabbitllm.releases.selection import MAIN, OLDEST

    for release in releases:
        if release != MAIN and Version(release).release < Version(OLDEST).release:
            raise ValueError(f"transformers {release} is too old: {OLDEST} is the first that does.")


def _refuse_closed(folder: Path) -> None:
    """Makes a folder; raises ValueError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise ValueError(f"{folder} cannot be written to: {error.strerror}.") from error


def _shrunk(folder: Path, tiny: Path) -> Path:
    from rabbitllm.releases import shrink

    if shrink.quantized(folder):
        left = f"{shrink.QUANTIZED} is left out: the tiny layers have plain weights."
        print(left, file=sys.stderr)
    shrink.write(folder, tiny)
    return tiny


def _folder(arguments: argparse.Namespace) -> Path:
    """The checkpoint's folder; what is not here yet comes from the hub, once for all releases."""
    from rabbitllm.checkpoint.hub import resolve, resolve_settings

    trust = arguments.trust_remote_code
    fetch = resolve_settings if arguments.shrink else resolve
    folder = fetch(arguments.model, None, trust).absolute()
    if not (folder / "config.json").is_file():
        from rabbitllm.errors import CheckpointError

        raise CheckpointError(f"{folder} has no config.json: give a checkpoint's folder.")
    return folder


def _question(arguments: argparse.Namespace, folder: Path) -> Any:
    return {
        "folder": str(folder),
        "trust": arguments.trust_remote_code,
        "dtype": arguments.dtype,
        "backends": arguments.attn,
        "input": None,
        "watched": None,
        "weights": arguments.shrink,
    }


def _sayer() -> Any:
    """What says on stderr what became of each release, and how long it took."""
    from rabbitllm.releases.report import reason

    last = [time.monotonic()]

    def say(row: "Row") -> None:
        now = time.monotonic()
        why = f": {reason(row)}" if reason(row) else ""
        day = f", with the packages of {row.day}" if row.day else ""
        print(f"{row.release}: {row.status}{day}, {now - last[0]:.0f} s{why}", file=sys.stderr)
        last[0] = now

    return say


def _earlier(folder: Path | None) -> Any:
    """What check.json of an earlier run holds, or None.

    Raises:
        ValueError: it is of another version.
    """
    from rabbitllm.releases.report import VERSION

    path = folder / "check.json" if folder else None
    if path is None or not path.is_file():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
        if found["version"] != VERSION:
            raise ValueError(f"{path} is of another version of this program: remove it.")
        _ = [(row["release"], row["status"]) for row in found["releases"]]
    except (json.JSONDecodeError, UnicodeDecodeError, TypeError, KeyError) as error:
        print(f"{path} is damaged, and counts as none: {error!r}", file=sys.stderr)
        return None
    return found


def _publish(found: "Report", arguments: argparse.Namespace, before: Any) -> None:
    from rabbitllm.releases.report import FILES, issue

    print(FILES[f"check.{arguments.format}"](found), end="")
    if arguments.reports:
        for name, render in FILES.items():
            write_durably(arguments.reports / name, render(found))
        text, path = issue(found, before), arguments.reports / "issue.md"
        write_durably(path, text) if text else path.unlink(missing_ok=True)
    print(found.summary, file=sys.stderr)
