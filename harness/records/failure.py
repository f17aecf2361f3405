"""Failures that share a cause share a fingerprint; known causes have a sentence for the user."""

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


BATCH_LOST = (
    "The batch dimension was lost, because a layer's result, a bare tensor since transformers 5, "
    'was indexed with [0] as if it were a tuple. In "tensor a must match tensor b", a counts the '
    "heads and b is head_dim."
)


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
        r"it runs \w+, asked for \w+",
        "The model fell back to another attention backend than the one that was asked for.",
    ),
    # What a diagnosis says (harness/measuring/diagnosis.py) is certain, so it comes before what a
    # message only suggests.
    Known(
        r"Diagnosis: .*each of \d+ blocks ran with the weights of the one 1 (behind|before) it",
        "Every layer computes with its neighbour's weights: loading ahead is off by one, so a slot "
        "is bound to one layer while another's weights are read into it.",
    ),
    Known(
        r"Diagnosis: .*ran with each other's weights",
        "Two layers are swapped: the map from checkpoint keys to layers, or their order, is wrong.",
    ),
    Known(
        r"Diagnosis: .*ran with the weights of",
        "A layer computes with another layer's weights, left over in its slot: its own were not "
        "read, or it did not wait until they had arrived.",
    ),
    Known(
        r"Diagnosis: .*holds other values than stock's",
        "A layer's weights are not the checkpoint's: they were read, cast or converted wrongly, or "
        "used before all of them had arrived.",
    ),
    Known(
        r"Diagnosis: .*experts [\d and]+ exchanged",
        "Experts of a mixture are in the wrong order: the checkpoint's were fused in another "
        "order than transformers fuses them.",
    ),
    Known(
        r"Diagnosis: .*head_dim is \d+, stock's is \d+"
        r"|[qkv]_(proj|norm)\.(weight|bias)\b.* has shape .* but the config",
        "head_dim is wrong: taken as hidden_size / num_attention_heads, or from a config that "
        "contradicts the checkpoint. The rows of q_proj / num_attention_heads are the truth.",
    ),
    Known(
        r"Diagnosis: .*inv_freq.* differs from stock's, rounded",
        "The rotary frequencies were rounded to half precision with the weights; they must stay in "
        "float32, or positions blur.",
    ),
    Known(
        r"Diagnosis: .*called with other .*position",
        "A layer gets other positions than stock's: they were shifted, or counted anew although "
        "the cache holds earlier tokens.",
    ),
    Known(
        r"Diagnosis: .*called with(out| other) .*attention_mask",
        "A layer gets another attention mask than stock's: padding is seen, or tokens are not.",
    ),
    Known(
        r"Diagnosis: .*called without .*(past_key_values|\bcache\b)"
        r"|past_key_value\b.*unexpected|cache .*not filled|cache lengths differ",
        "The cache did not reach a layer: its keyword is past_key_values, from 5.24 on cache, "
        "and a wrong one is swallowed by **kwargs.",
    ),
    Known(
        r"Diagnosis: .*gave shape \[\d+, \d+\], stock's shape \[\d+, \d+, \d+\]",
        BATCH_LOST,
    ),
    Known(
        r"tensor a \((\d+)\) must match .* tensor b \((\d+)\) at non-singleton dimension 3",
        BATCH_LOST,
    ),
    Known(
        r"shape '\[\d+, \d+, -1, \d+\]' is invalid for input of size",
        "The projection does not divide into heads: head_dim was taken as hidden_size / "
        "num_attention_heads, or from a config that contradicts the checkpoint.",
    ),
    Known(
        r"Cannot copy out of meta tensor|on device meta|meta tensors|with weights missing"
        r"|used while it is not in memory|Diagnosis: .*ran without",
        "A module ran, or was moved, while its weights were not loaded.",
    ),
    Known(
        r"tensors are missing from the checkpoint.*: lm_head\.weight",
        "The checkpoint holds no head, because it is tied to the embedding; the tie was lost, so "
        "the head was looked for on its own.",
    ),
    Known(
        r"Diagnosis: the blocks agree with stock's, what follows"
        r"|the head holds other values|the embedding gives other values|they are (one|two) tensor",
        "Head and embedding are not what the checkpoint says: one tensor was taken for two or two "
        "for one, or the head was never loaded.",
    ),
    Known(
        r"after the forward .* (still hold weights|bytes are held)|blocks held weights at once",
        "Weights stay in memory after their layer has run: the plan says what fits, and is broken.",
    ),
    Known(r"CUDA out of memory", "The device has less free memory than the cell needs."),
    Known(
        r"CppCompileError|C\+\+ compile error",
        "torch could not compile the attention backend; sdpa and eager need no compiler.",
    ),
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
    message = re.sub(rf"^[\w.]*{re.escape(exception)}:?\s*", "", message)
    message = head(message, LONGEST_MESSAGE)
    text = tail("".join(traceback.format_exception(error)), LONGEST_TRACEBACK)
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
    # Its end is the diagnosis. Some patterns would take long for a message of megabytes.
    text = f"{exception}: {message}"[-2 * LONGEST_MESSAGE :]
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


def head(text: str, length: int) -> str:
    """Return the beginning of a text, scrubbed: what is cut off, whatever its size, is not read."""
    if len(text) > length + LONGEST_PATH:
        text = text[: length + LONGEST_PATH]
        # Without what the cut left of a path; what is longer than a path is none.
        ends = [found.start() for found in re.finditer(APART, text)]
        text = text[: max([length, *ends[-1:]])]
    return scrub(text)[:length]


def tail(text: str, length: int) -> str:
    """Return the end of a text, scrubbed, as `head` returns the beginning."""
    if len(text) > length + LONGEST_PATH:
        text = text[-length - LONGEST_PATH :]
        begins = re.search(APART, text)
        text = text[min(LONGEST_PATH, begins.end() if begins else LONGEST_PATH) :]
    return scrub(text)[-length:]


def scrub(text: str) -> str:
    """Return text without local paths and control characters: records are published."""
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
