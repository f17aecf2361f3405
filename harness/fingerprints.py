"""Failures that share a cause share a fingerprint; known causes have a sentence for the user."""

from __future__ import annotations

import hashlib
import re
import traceback
from dataclasses import dataclass
from types import TracebackType

from harness.cells import ROOT

LONGEST_MESSAGE = 2_000
LONGEST_TRACEBACK = 6_000
BLAMED = ("rabbitllm", "transformers", "accelerate", "harness")
"""Packages whose frames say where a failure arose, the most telling first."""


@dataclass(frozen=True)
class Known:
    """A cause that is understood.

    Attributes:
        pattern: regular expression found in "Type: message".
        sentence: what it means.
    """

    pattern: str
    sentence: str


KNOWN = (
    Known(
        r"tensor a \((\d+)\) must match .* tensor b \((\d+)\) at non-singleton dimension 3",
        "a is the number of heads, b is head_dim: the batch dimension was lost, because a layer's "
        "result, a bare tensor since transformers 5, was indexed with [0] as if it were a tuple.",
    ),
    Known(
        r"shape '\[\d+, \d+, -1, \d+\]' is invalid for input of size",
        "The projection does not divide into heads: head_dim was taken as hidden_size / "
        "num_attention_heads, or from a config that contradicts the checkpoint.",
    ),
    Known(
        r"(Cannot copy out of meta tensor|on device meta|meta tensors)",
        "A module ran, or was moved, while its weights were not loaded.",
    ),
    Known(
        r"past_key_value\b.*unexpected|cache .*not filled|cache lengths differ",
        "The cache did not reach a layer: its keyword is past_key_values, and a wrong one is "
        "swallowed by **kwargs.",
    ),
    Known(r"CUDA out of memory", "The device has less free memory than the cell needs."),
)


@dataclass(frozen=True)
class Failure:
    """An exception as it is recorded.

    Attributes:
        exception: its type's name.
        message: what it says, without local paths or control characters, at most `LONGEST_MESSAGE`
            long.
        traceback: the end of its traceback, likewise.
        fingerprint: see `fingerprint`.
    """

    exception: str
    message: str
    traceback: str
    fingerprint: str


def describe(error: BaseException) -> Failure:
    """Return an exception as a failure; one that cannot even be printed is no trouble."""
    # The traceback module survives a __str__ that raises.
    message = "".join(traceback.format_exception_only(error)).strip()
    exception = type(error).__name__
    message = scrub(re.sub(rf"^[\w.]*{re.escape(exception)}:?\s*", "", message))[:LONGEST_MESSAGE]
    text = scrub("".join(traceback.format_exception(error)))[-LONGEST_TRACEBACK:]
    return Failure(
        exception, message, text, fingerprint(exception, message, origin(error.__traceback__))
    )


def fingerprint(exception: str, message: str, where: str) -> str:
    """Return 12 hexadecimal digits that are equal for failures of the same kind at the same place.

    Args:
        exception: the type's name.
        message: numbers, quoted names, paths and addresses in it do not count.
        where: package, module and function, or the check that found it.
    """
    return hashlib.sha256(f"{exception}\n{normalised(message)}\n{where}".encode()).hexdigest()[:12]


def normalised(message: str) -> str:
    """Return the message without what differs between two runs of the same failure."""
    message = re.sub(r"0x[0-9a-fA-F]+", "ADDRESS", message)
    message = re.sub(r"(/[\w.@+-]+){2,}|<path>\S*", "PATH", message)
    message = re.sub(r"[-+]?\d+(\.\d+)?([eE][-+]?\d+)?", "N", message)
    return " ".join(message.split())


def explanation(exception: str, message: str) -> str:
    """Return the sentence of the first known cause that fits, or nothing."""
    text = f"{exception}: {message}"
    return next(
        (known.sentence for known in KNOWN if re.search(known.pattern, text, re.DOTALL)), ""
    )


def origin(tb: TracebackType | None) -> str:
    """Return module and function of the innermost frame in the most telling package of `BLAMED`."""
    innermost: dict[str, str] = {}
    for frame, _ in traceback.walk_tb(tb):
        module = str(frame.f_globals.get("__name__", ""))
        innermost[module.split(".")[0]] = f"{module}.{frame.f_code.co_name}"
    return next((innermost[package] for package in BLAMED if package in innermost), "")


def scrub(text: str) -> str:
    """Return text without local paths and control characters: records are published."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", text)
    text = "".join(char for char in text if char in "\n\t" or char.isprintable())
    text = text.replace(f"{ROOT}/", "")
    text = re.sub(r"(/[^\s'\":,()]+)+/(site-packages|dist-packages)/", "", text)
    # Any other absolute path, but not the part of a URL behind its scheme.
    return re.sub(r"(?<![\w.>/:])/(?:[^\s'\":,()/]+/)+", "<path>/", text)
