"""What failed, as it is recorded: failures that share a cause share a fingerprint."""

from __future__ import annotations

import hashlib
import re
import traceback
from dataclasses import dataclass
from types import TracebackType

from harness.matrix import ROOT

LONGEST_MESSAGE = 2_000
LONGEST_TRACEBACK = 6_000
LONGEST_PATH = 4_096
"""Characters; no file system that is in use takes a longer one."""
APART = r"[\s'\":,()]"
"""What stands between paths."""
BLAMED = ("rabbitllm", "transformers", "accelerate", "harness")
"""Packages whose frames say where a failure arose, the most telling first."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What is wrong, as it is recorded; all of it is empty where nothing is.

    Attributes:
        message: one line or a few, without local paths or control characters, at most
            `LONGEST_MESSAGE` long.
        exception: the type's name, if something was raised.
        fingerprint: equal for failures of the same kind, see `fingerprint`.
    """

    message: str = ""
    exception: str = ""
    fingerprint: str = ""


@dataclass(frozen=True, kw_only=True)
class Traced(Failure):
    """A failure and where it arose.

    Attributes:
        traceback: the end of it, at most `LONGEST_TRACEBACK` long, without local paths.
    """

    traceback: str = ""


def describe(error: BaseException) -> Traced:
    """An exception as a failure; one that cannot even be printed is no trouble."""
    # The traceback module survives a __str__ that raises.
    message = "".join(traceback.format_exception_only(error)).strip()
    exception = type(error).__name__
    message = re.sub(rf"^[\w.]*{re.escape(exception)}:?\s*", "", message)
    message = head(message, LONGEST_MESSAGE)
    text = tail("".join(traceback.format_exception(error)), LONGEST_TRACEBACK)
    return Traced(
        message=message,
        exception=exception,
        fingerprint=fingerprint(exception, message, origin(error.__traceback__)),
        traceback=text,
    )


def fingerprint(exception: str, message: str, where: str) -> str:
    """12 hexadecimal digits that are equal for failures of the same kind at the same place.

    Args:
        exception: the type's name.
        message: numbers, quoted names, paths and addresses in it do not count.
        where: package, module and function, or the check that found it.
    """
    return hashlib.sha256(f"{exception}\n{normalised(message)}\n{where}".encode()).hexdigest()[:12]


def normalised(message: str) -> str:
    """The message without what differs between two runs of the same failure."""
    message = re.sub(r"0x[0-9a-fA-F]+", "ADDRESS", message)
    message = re.sub(r"(/[\w.@+-]+){2,}|<path>\S*", "PATH", message)
    message = re.sub(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?", "N", message)
    return " ".join(message.split())


def origin(tb: TracebackType | None) -> str:
    """Module and function of the innermost frame in the most telling package of `BLAMED`."""
    innermost: dict[str, str] = {}
    for frame, _ in traceback.walk_tb(tb):
        module = str(frame.f_globals.get("__name__", ""))
        innermost[module.split(".")[0]] = f"{module}.{frame.f_code.co_name}"
    return next((innermost[package] for package in BLAMED if package in innermost), "")


def head(text: str, length: int) -> str:
    """The beginning of a text, scrubbed: what is cut off, whatever its size, is not read."""
    if len(text) > length + LONGEST_PATH:
        text = text[: length + LONGEST_PATH]
        # Without what the cut left of a path; what is longer than a path is none.
        ends = [found.start() for found in re.finditer(APART, text)]
        text = text[: max([length, *ends[-1:]])]
    return scrub(text)[:length]


def tail(text: str, length: int) -> str:
    """The end of a text, scrubbed, as `head` returns the beginning."""
    if len(text) > length + LONGEST_PATH:
        text = text[-length - LONGEST_PATH :]
        begins = re.search(APART, text)
        text = text[min(LONGEST_PATH, begins.end() if begins else LONGEST_PATH) :]
    return scrub(text)[-length:]


def scrub(text: str) -> str:
    """Text without local paths and control characters: records are published."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    strange = {char for char in set(text) - {"\n", "\t"} if not char.isprintable()}
    text = text.translate(dict.fromkeys(map(ord, strange)))
    text = text.replace(f"{ROOT}/", "")
    # From a run's first slash on, and what is before it if that is a folder (.tox/tf5.0.0/...).
    # The lookbehind allows one try for each run, the groups one way to divide it, so hostile text
    # takes linear time.
    text = re.sub(
        r"(?<![^\s'\":,()])([^\s'\":,()/]*)/[^\s'\":,()]+/(?:site-packages|dist-packages)/",
        lambda found: "" if re.fullmatch(r"[\w.-]+", found[1]) else found[1],
        text,
    )
    # Any other absolute path, a compiler's -I and -L and a file's URL included; no other URL's.
    return re.sub(
        r"/(?:(?<![\w.>/:]/)|(?<=\s-[IL]/)|(?<=\bfile:///))(?:[^\s'\":,()/]+/)+", "<path>/", text
    )
