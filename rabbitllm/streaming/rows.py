"""Where rows of weights come from: straight from disk, or from a device's shelf."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from rabbitllm.checkpoint.reader import Reader
from rabbitllm.errors import BudgetError
from rabbitllm.streaming.binding import marked
from rabbitllm.streaming.pace import RowBytes, all_ahead
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
    """

    shelf: RowShelf
    name: str
    count: int
    row: RowBytes

    @classmethod
    def of(cls, shelf: RowShelf, stage: Stage) -> "ShelfRows":
        """Those of a stage."""
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

    def foresee_all(self, running: bool) -> bool:
        """Has all rows come, which are going to be asked for next: see `RowShelf.foresee_all`."""
        return self.shelf.foresee_all(self.name, self.count, running)
