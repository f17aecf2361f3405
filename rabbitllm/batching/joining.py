"""Which way prompts go: within the pass of the sequences that run, or by forwards of their own.

A pass over streamed weights costs about the same whatever is in it, up to so many tokens. So the
ways are compared in passes that sequences wait for, each sequence's counted:

- In the pass of all, a prompt takes as many passes as it has widths of that pass in it. Nobody else
  waits, and the last of the passes gives its first token.
- A forward of their own takes a few prompts at once, wide, and everybody else waits for it.
"""

from collections.abc import Callable, Sequence

import torch

from rabbitllm.batching.cache import SLACK
from rabbitllm.batching.row import Row

PASS_TOKENS = {"cpu": 256, "cuda": 2048}
"""Tokens of a pass of all, padding included, that cost little beside the weights' way, or on a CPU
seconds at most; what a prompt may hold others up by."""
PROMPT_TOKENS = {"cuda": 8192}
"""The same of prompts' own forwards, which have fewer where there is no memory for so many. On an
H100 15 GB of weights take 0.3 s at 52 GB/s, and two operations for each of 7B parameters and 8,192
tokens 0.3 s at 400 TFLOPS. A CPU has none: more tokens than in the pass of all would take longer,
and as many save no passes."""
LEAST_CHUNK = 8
"""Tokens of a prompt in a pass, however many rows there are."""


def shared_width(device: torch.device, rows: int) -> int:
    """Tokens of each of so many sequences in their pass."""
    width = max(LEAST_CHUNK, PASS_TOKENS[device.type] // rows)
    return min(width, SLACK) if rows > 1 else width


def least_width(device: torch.device, rows: int) -> int:
    """Tokens of each of so many sequences in a pass that there must be room for.

    Where prompts go by themselves, the pass of all brings single tokens.
    """
    return 1 if device.type in PROMPT_TOKENS else shared_width(device, rows)


def own_width(device: torch.device, rows: int) -> int:
    """Tokens of each of so many prompts in a forward of their own."""
    return PROMPT_TOKENS.get(device.type, 0) // rows


def narrowed(width: int, fits: Callable[[int], bool]) -> int:
    """That width, or what is left of it where there is no room; `LEAST_CHUNK` in any case."""
    while width > LEAST_CHUNK and not fits(width):
        width //= 2
    return width


def widest(device: torch.device, rows: Sequence[Row]) -> list[Row]:
    """Of the rows, those that one forward of their own takes: the longest.

    They differ least from each other, so there is little padding, and they gain most. A prompt that
    is too long for one forward is alone, and takes several.
    """
    tokens = own_width(device, 1)
    if not rows or not tokens:
        return []
    ordered = sorted(rows, key=lambda row: len(row.ids), reverse=True)
    return ordered[: max(1, tokens // len(ordered[0].ids))]


def saves(group: Sequence[Row], own: int, shared: int, others: int) -> bool:
    """Whether forwards of their own have rows wait less than they have others wait.

    Args:
        group: the rows.
        own: tokens of each in such a forward.
        shared: in the pass of all.
        others: how many more have a part in that.
    """
    forwards = passes(max(len(row.ids) for row in group), own)
    return sum(passes(row.pending, shared) - forwards for row in group) > forwards * others


def passes(tokens: int, width: int) -> int:
    """In how many passes of that width tokens are through."""
    return -(-tokens // width)
