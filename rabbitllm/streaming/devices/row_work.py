"""What a CUDA device knows of rows of weights, and what it does to have those it is asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from rabbitllm.streaming.devices.encoded import Encoded

NEVER = torch.iinfo(torch.int64).max
"""As the time when a slot was used last: it cannot be had."""


@dataclass(frozen=True)
class Home:
    """A stage's rows in pinned memory.

    Attributes:
        rows: each as it is stored: uint8 [bytes].
        encoded: how every one of them lies there.
        nbytes: of one as it computes.
    """

    rows: Sequence[torch.Tensor]
    encoded: Encoded
    nbytes: int


@dataclass(frozen=True)
class Known:
    """What a device knows of a stage's rows, all int64. Each last element is for none.

    Attributes:
        home: address of each row in pinned memory; 0 for none: [rows + 1].
        place: which of the stage's slots holds a row; -1 for none: [rows + 1].
        slot: address of each slot; 0 for none: [slots + 1].
        held: number of the row that a slot holds; `rows` for none: [slots + 1].
        used: when that was asked for last; NEVER for none: [slots + 1].
        counts: how many rows were asked for, and how many of them had to come: [2].
        now: counts the calls of all stages: [].
    """

    home: torch.Tensor
    place: torch.Tensor
    slot: torch.Tensor
    held: torch.Tensor
    used: torch.Tensor
    counts: torch.Tensor
    now: torch.Tensor


@dataclass(frozen=True)
class Found:
    """What is found out of numbers of rows, all int64.

    Attributes:
        places: for each number the place of its row in the table, which has the rows ascending; of
            none the one behind the last: [numbers].
        sources: for each place of the table the address that its row is at; 0 for none: [numbers].
        coming: 1 where that is in pinned memory, else 0: [numbers].
        keeping: the address of the slot that is to keep a row that comes; 0 for none: [numbers].
    """

    places: torch.Tensor
    sources: torch.Tensor
    coming: torch.Tensor
    keeping: torch.Tensor


class Kernels(Protocol):
    """What a device does; nothing waits for it."""

    def look_up(self, asked: torch.Tensor, known: Known, found: Found) -> None:
        """Enqueues what finds rows, and decides which of them are kept.

        Args:
            asked: numbers of rows, integers [numbers]; those below 0 and behind the last are of
                none.
            known: of their stage; it is kept up to date.
            found: is written.
        """

    def copy_rows(self, found: Found, table: torch.Tensor) -> None:
        """Enqueues what copies rows to the table, and those that come to where they are kept.

        Args:
            found: which.
            table: uint8 [numbers, bytes].
        """

    def fetch_rows(self, found: Found, table: torch.Tensor, stored: torch.Tensor) -> None:
        """Enqueues what copies those that are there to the table, and those that come elsewhere.

        Args:
            found: which.
            table: uint8 [numbers, bytes].
            stored: for each place of the table where its row goes if it comes: uint8 [numbers,
                bytes as it is stored].
        """

    def decode_rows(
        self, found: Found, table: torch.Tensor, stored: torch.Tensor, encoded: Encoded
    ) -> None:
        """Enqueues what decodes those that came to the table, and to where they are kept.

        Args:
            found: see `fetch_rows`.
            table: see there.
            stored: see there.
            encoded: how each of them lies there.
        """


def bring(kernels: Kernels, memory: torch.Tensor, home: Home, found: Found) -> None:
    """Enqueues what makes the rows that were found the table."""
    count, size = len(found.places), home.encoded.nbytes
    table = memory[:count, : home.nbytes]
    if home.encoded.plain:
        kernels.copy_rows(found, table)
        return
    stored = memory.view(-1)[-count * size :].view(count, size)
    kernels.fetch_rows(found, table, stored)
    kernels.decode_rows(found, table, stored, home.encoded)
