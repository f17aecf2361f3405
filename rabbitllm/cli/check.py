"""Check a checkpoint over transformers releases: what it gives, and since when it does not.

In an environment of each release: does it load, with all its weights; are logits, greedy tokens,
token ids and chat text those of the first good release; do attention backends agree, and logits
with and without a cache. What is right is kept in a file, which is for committing. Where a check
breaks, the releases between are tried until the first bad one is known. A range means the newest
patch of each minor. Code in the checkpoint runs only with --trust-remote-code.

exit status: 0 if every release is good, 1 if one is bad, 2 if the question is wrong, 3 if none is
bad and one could not be installed
"""

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rabbitllm.cli.bisect import add_environments, environments_of

if TYPE_CHECKING:
    from rabbitllm.releases.checkup import Checkup, Row
    from rabbitllm.releases.report import Report

EXAMPLE = """\
  rabbitllm check ./my-model --releases 5.0..newest --trust-remote-code
  rabbitllm check my/model-70b --releases 5.0,5.12,newest,main --shrink --reports reports"""
STATUSES = {"good": 0, "bad": 1, "not-run": 3}
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
    from rabbitllm.releases.report import Report
    from rabbitllm.releases.selection import in_order, select

    environments = environments_of(arguments)
    known = ask_index(pre=arguments.pre)
    releases = select(arguments.releases, known, arguments.pre)
    folder = _folder(arguments)
    recipe = {
        "checkpoint": golden.digest(folder, weights=not arguments.shrink),
        "dtype": arguments.dtype,
        "shrunk": arguments.shrink,
    }
    right = golden.read(arguments.golden, recipe)
    before = _earlier(arguments.reports)
    print(f"{len(releases)} releases, {releases[0]} to {releases[-1]}", file=sys.stderr)
    with ExitStack() as stack:
        if arguments.shrink:
            from rabbitllm.releases import shrink

            tiny = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            shrink.write(folder, tiny)
            folder = tiny
        checkup = Checkup(_question(arguments, folder), environments, recipe, right, _sayer())
        breaks = _measured(checkup, releases, known)
    if right is None and checkup.golden:
        golden.write(checkup.golden, arguments.golden)
        print(f"What is right is in {arguments.golden}: commit it.", file=sys.stderr)
    by = checkup.golden.release if checkup.golden else ""
    rows = [checkup.rows[release] for release in in_order(checkup.rows)]
    found = Report(arguments.model, arguments.dtype, arguments.shrink, by, rows, breaks)
    _publish(found, arguments, before)
    return STATUSES[found.status]


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


def _measured(checkup: "Checkup", releases: list[str], known: list[str]) -> Any:
    for release in releases:
        checkup.measure(release)
    return checkup.breaks(known)


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
    found = json.loads(path.read_text("utf-8"))
    if found.get("version") != VERSION:
        raise ValueError(f"{path} is of another version of this program: remove it.")
    return found


def _publish(found: "Report", arguments: argparse.Namespace, before: Any) -> None:
    from rabbitllm.releases.report import FILES, issue

    print(FILES[f"check.{arguments.format}"](found), end="")
    if arguments.reports:
        arguments.reports.mkdir(parents=True, exist_ok=True)
        for name, render in FILES.items():
            (arguments.reports / name).write_text(render(found), "utf-8")
        text, path = issue(found, before), arguments.reports / "issue.md"
        path.write_text(text, "utf-8") if text else path.unlink(missing_ok=True)
    print(found.summary, file=sys.stderr)
