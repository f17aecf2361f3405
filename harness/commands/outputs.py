"""Run the commands whose output documents show, and show what they print now; --check compares.

Figures are of the machine: outputs that differ in numbers and in widths alone are the same.

exit status: 0 if all is as shown or was written, 1 if --check finds other words
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from harness.matrix import ROOT, load_matrix
from harness.records import write_atomically

EXAMPLE = "  tox -e outputs -- --check"
MARK = "<!-- shown by: tox -e outputs -->"
BLOCK = re.compile(rf"(?<={MARK}\n```console\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
MODEL = "smollm2-135m"
"""The architecture whose checkpoint the commands find, in a folder named as on the hub."""
FOLDER = "SmolLM2-135M-Instruct"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="write nothing; name what differs")


def main(arguments: argparse.Namespace) -> int:
    """Runs the commands in a folder of their own, and compares or writes."""
    from harness.measuring.checkpoints import write_real  # needs torch

    row = next(row for row in load_matrix().architectures if row.id == MODEL)
    assert row.gguf is not None  # what this row is for
    with tempfile.TemporaryDirectory(prefix="outputs-") as scratch:
        write_real(row.gguf, row.dtype, Path(scratch, FOLDER))
        return renew(ROOT, lambda command: printed(command, Path(scratch)), arguments.check)


def renew(root: Path, run: Callable[[str], str], check: bool) -> int:
    """Brings every marked block up to date, or names those that say something else.

    Args:
        root: of the checkout.
        run: command -> what it prints.
        check: write nothing.
    """
    different = 0
    for path in sorted([*root.glob("*.md"), *(root / "docs").glob("*.md")]):
        text = path.read_text("utf-8")
        new = BLOCK.sub(lambda block: session(block[0], run), text)
        if masked(new) != masked(text):
            different += 1
            print(
                f"{path.relative_to(root)} shows what its commands do not print:", file=sys.stderr
            )
            print(first_difference(text, new), file=sys.stderr)
        if not check and new != text:
            write_atomically(path, new)
            print(path.relative_to(root))
    return 1 if check and different else 0


def session(block: str, run: Callable[[str], str]) -> str:
    """A block with its commands, each followed by what it prints."""
    commands = [line for line in block.splitlines() if line.startswith("$ ")]
    return "".join(f"{line}\n{run(line.removeprefix('$ '))}" for line in commands)


def printed(command: str, folder: Path) -> str:
    """What a command prints in a folder, to either stream, with the folder called /home/you."""
    done = subprocess.run(
        shlex.split(command),
        cwd=folder,
        env=os.environ | {"RABBITLLM_CACHE": str(folder / ".cache" / "rabbitllm")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,  # some show an error
    )
    return done.stdout.replace(str(folder), "/home/you")


def masked(text: str) -> str:
    """A text without its figures, and without what their widths make of a table."""
    return re.sub(r"-{2,}", "--", re.sub(r"[ \t]+", " ", re.sub(r"\d[\d.,]*", "#", text)))


def first_difference(old: str, new: str) -> str:
    """The first lines of two texts that differ in more than figures."""
    for shown, now in zip(old.splitlines(), new.splitlines(), strict=False):
        if masked(shown) != masked(now):
            return f"  shown: {shown}\n  now:   {now}"
    return "  one of them is longer"
