"""Where rows of weights come from: straight from disk, or from a device's shelf."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rabbitllm.checkpoint.reader import Reader
from rabbitllm.errors import BudgetError
from rabbitllm.streaming.binding import marked
from rabbitllm.streaming.devices.recorder import records
from rabbitllm.streaming.pace import RowBytes, all_ahead
from rabbitllm.streaming.row_sharing import LEAST, RowRates, rows_by_link
from rabbitllm.streaming.shelf import RowShelf
from rabbitllm.streaming.weights import Stage


@dataclass(frozen=True)
class DiskRows:
    """Rows of weights that are read anew with each call, into memory of their own.

    Attributes:
        reader: reads them.
        names: of the weights.
        device: where they are needed.
        most: see `Rows`.
        whole: see `Rows`.
    """

    reader: Reader
    names: tuple[str, ...]
    device: torch.device
    most: None = None
    whole: bool = False

    def bring(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        """See `Rows`; raises CheckpointError, too: a file is not what it was, or is damaged."""
        ids = torch.tensor(numbers, device="cpu")
        rows = (self.reader.read_rows(name, ids).to(self.device) for name in self.names)
        return [marked(nn.Parameter(each, requires_grad=False)) for each in rows]

    def look_up(self, asked: torch.Tensor) -> None:
        """The host reads them: it has to know which."""

    def ran(self, numbers: Sequence[int]) -> None:
        """They go with the parameters."""


@dataclass(frozen=True)
class ShelfRows:
    """Rows of one stage, on the shelf that it shares with others.

    Attributes:
        shelf: that.
        name: the stage's.
        count: how many rows there are.
        row: bytes of one of them.
        rates: by which the CPU computes with some of them in long passes; None if it does not.
        fit: whether it can, as things are; asked in each such pass.
    """

    shelf: RowShelf
    name: str
    count: int
    row: RowBytes
    rates: RowRates | None = None
    fit: Callable[[], bool] = lambda: True

    @classmethod
    def of(cls, shelf: RowShelf, stage: Stage) -> "ShelfRows":
        """Those of a stage, with which no CPU computes."""
        row = RowBytes(stage.row_nbytes, stage.stored_row_nbytes)
        return cls(shelf, stage.name, stage.rows, row)

    @property
    def most(self) -> int:
        """How many rows the shelf can hold."""
        return len(self.shelf)

    @property
    def whole(self) -> bool:
        """Whether all rows are there, or on their way."""
        return self.shelf.comes_whole(self.name)

    def bring(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        """See `Rows`.

        Raises:
            BudgetError: there is no room for so many at a time.
            CheckpointError: a file is not what it was, or what is encoded in it is damaged.
            IndexError: there is no such row.
        """
        if len(numbers) > len(self.shelf):
            # All are asked for beside weights of the user's, which have all rows.
            raise BudgetError(
                f"{self.name} needs {len(numbers)} experts at a time, and the budget keeps room "
                f"for {len(self.shelf)}. Raise it."
            )
        for number in (numbers[0], numbers[-1]) if numbers else ():
            if not 0 <= number < self.count:
                raise IndexError(f"{self.name} has no row {number}: it has {self.count}")
        return self.shelf.lay_out(self.name, numbers)

    def look_up(self, asked: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]] | None:
        """See `Rows`."""
        return self.shelf.look_up(self.name, asked)

    def ran(self, numbers: Sequence[int]) -> None:
        """Those that others may ask for again are kept."""
        self.shelf.keep(self.name, numbers)

    def foresee(self, numbers: Sequence[int]) -> None:
        """Has rows come that may be asked for next, the likeliest first."""
        self.shelf.foresee(self.name, numbers)

    def wants_all(self, asked: int, routes: int) -> bool:
        """Whether all had better come ahead.

        Args:
            asked: how many rows the stage before asks for.
            routes: how many numbers that is given.
        """
        kept = self.shelf.kept(self.name)
        return all_ahead(asked, routes, self.count, kept, self.row, self.shelf.pace)

    def on_device(self, routes: int) -> Sequence[int] | None:
        """Which rows the device computes with, and the CPU with the others.

        They do not depend on what is asked for, so that they can come before that is known.

        Args:
            routes: how many numbers the stage is given.

        Returns:
            Their numbers, ascending. None if the device has all that are asked for: in passes of
            few tokens, in those of more than the CPU is known to be quick for, where something is
            recorded, and where the CPU cannot compute with any.
        """
        if self.rates is None or not LEAST <= routes / self.count <= self.rates.most:
            return None
        recording = torch.is_grad_enabled() or torch.is_autocast_enabled() or records()
        if recording or not self.fit():
            return None
        if coming := self.shelf.coming(self.name):
            return coming if len(coming) < self.count else None
        absent = self.shelf.absent(self.name)
        room = len(self.shelf) - (self.count - len(absent))
        brought = rows_by_link(len(absent), routes / self.count, self.row, self.rates, room)
        others = set(absent[brought:])
        if not others:
            return None
        return [number for number in range(self.count) if number not in others]

    def foresee_all(self, routes: int, running: bool) -> bool:
        """Has all rows come that the device is going to compute with.

        Args:
            routes: how many numbers the stage is going to be given.
            running: see `RowShelf.foresee_table`.

        Returns:
            Whether they come.
        """
        numbers = self.on_device(routes) or range(self.count)
        return self.shelf.foresee_table(self.name, numbers, running)
