"""What streams: weights, and the stages in which they come and go together."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import nn

ALIGNMENT = 256
"""Bytes. Weights start on such a boundary: kernels choose by alignment, and so change bits."""


Kind = Literal["_parameters", "_buffers"]
"""Which of a module's own dictionaries a weight is in."""


class Owner(NamedTuple):
    """Where a weight is bound: the module that computes with it, and its name there."""

    module: nn.Module
    attribute: str


@dataclass(frozen=True, eq=False)
class Weight:
    """One parameter or persistent buffer, wherever it is used.

    Attributes:
        name: its first name in the model.
        owners: every place it is bound in; several when tied.
        dtype: the dtype it has in the model.
        shape: the shape it has in the model.
        offset: bytes from the start of its stage's buffer, a multiple of `ALIGNMENT`.
        by: which argument of the first owner's forward names the rows, slices along dimension 0,
            that the forward needs; None where it needs the whole. Other owners need the whole.
        rows: how many rows there are to name; 0 where there are none.
        row: where rows are modules of their own, such as experts in a list, and not slices: the
            number of the one that this weight belongs to.
        kind: what it is to its owners.
        on_disk: bytes that are stored of it; None for as many as it has.
    """

    name: str
    owners: tuple[Owner, ...]
    dtype: torch.dtype
    shape: torch.Size
    offset: int = 0
    by: int | None = None
    rows: int = 0
    row: int | None = None
    kind: Kind = "_parameters"
    on_disk: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the weight, without padding."""
        return self.shape.numel() * self.dtype.itemsize

    @property
    def asked(self) -> bool:
        """Whether the first owner needs no more of it than rows, or needs it with its row alone."""
        return self.by is not None or self.row is not None

    @property
    def stored_nbytes(self) -> int:
        """Bytes that are stored of it."""
        return self.nbytes if self.on_disk is None else self.on_disk


@dataclass(frozen=True, eq=False)
class Stage:
    """Weights that load together, and the modules whose forward needs them.

    Attributes:
        name: the path of its first module in the model.
        modules: as a rule one; two when a head is tied to the embedding; those of a list.
        weights: laid out one behind the other in the stage's buffer.
        pinned: it is resident in any case.
        least_rows: of its weights' rows, how many must be on the device at a time; 0 where rows
            have no place there that they keep: they come with each call.
    """

    name: str
    modules: tuple[nn.Module, ...]
    weights: tuple[Weight, ...]
    pinned: bool = False
    least_rows: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the stage's buffer, padding included."""
        last = self.weights[-1]
        return align(last.offset + last.nbytes)

    @property
    def stored_nbytes(self) -> int:
        """Bytes that are read to fill the buffer; padding counts here, too."""
        if self.least_rows:
            return self.rows * self.stored_row_nbytes
        return sum(align(weight.stored_nbytes) for weight in self.weights)

    @property
    def offsets(self) -> dict[str, int]:
        """Weight name -> where it begins in the stage's buffer, in bytes."""
        return {weight.name: weight.offset for weight in self.weights}

    @property
    def slotless(self) -> bool:
        """Where it is not resident it takes no slot: of all its weights only rows are needed."""
        return all(weight.asked and len(weight.owners) == 1 for weight in self.weights)

    @property
    def rows(self) -> int:
        """How many rows there are; 0 where they have no place on the device."""
        return max(weight.rows for weight in self.weights) if self.least_rows else 0

    @property
    def row(self) -> "Stage":
        """One row of all weights, as a stage; where rows are modules, the first."""
        weights = (
            replace(weight, shape=of_row(weight), on_disk=None)
            for weight in self.weights
            if not weight.row
        )
        return replace(self, weights=lay_out(weights), least_rows=0)

    @property
    def row_nbytes(self) -> int:
        """Bytes of one row's buffer; 0 where rows have no place on the device."""
        return self.row.nbytes if self.least_rows else 0

    @property
    def stored_row_nbytes(self) -> int:
        """Bytes that one row takes as it is stored, at most."""
        if not self.least_rows:
            return 0
        if parts := self.parts():
            return max(sum(align(weight.stored_nbytes) for weight in part) for part in parts)
        sizes = (-(-weight.stored_nbytes // weight.rows) for weight in self.weights)
        return sum(align(size) + ALIGNMENT * (size % ALIGNMENT != 0) for size in sizes)

    def stored(self, sizes: Mapping[str, int]) -> "Stage":
        """The same, its weights taking so many bytes on disk, by name; others take their own."""
        weights = (replace(weight, on_disk=sizes.get(weight.name)) for weight in self.weights)
        return replace(self, weights=tuple(weights))

    def alone(self) -> "Stage":
        """The same without the modules: what may be kept without keeping them alive."""
        weights = tuple(replace(weight, owners=()) for weight in self.weights)
        return replace(self, modules=(), weights=weights)

    def gathered(self) -> dict[tuple[nn.Module, int], list[Weight]]:
        """(module, argument of its forward) -> the weights that it names rows of."""
        found: dict[tuple[nn.Module, int], list[Weight]] = defaultdict(list)
        for weight in self.weights:
            if weight.by is not None:
                asked = self.modules[0] if self.least_rows else weight.owners[0].module
                found[asked, weight.by].append(weight)
        return found

    def parts(self) -> list[tuple[Weight, ...]]:
        """Of each row its weights, laid out as in `row`; none where rows are slices."""
        found: dict[int, list[Weight]] = defaultdict(list)
        for weight in self.weights:
            if weight.row is not None:
                found[weight.row].append(weight)
        return [lay_out(found[number]) for number in sorted(found)]

    def streamed(self) -> "Stage | None":
        """What takes a slot: all but what is asked for by rows; None if nothing is left."""
        if self.slotless:
            return None
        if not self.gathered():
            return self
        weights = lay_out(
            replace(weight, owners=weight.owners[weight.by is not None :], by=None, rows=0)
            for weight in self.weights
            if weight.by is None or len(weight.owners) > 1
        )
        owners = {owner.module for weight in weights for owner in weight.owners}
        modules = (module for module in self.modules if not owners.isdisjoint(module.modules()))
        return replace(self, modules=tuple(modules), weights=weights) if weights else None


def lay_out(weights: Iterable[Weight]) -> tuple[Weight, ...]:
    """The same, one behind the other in a buffer."""
    placed, offset = [], 0
    for weight in weights:
        placed.append(replace(weight, offset=offset))
        offset = align(offset + weight.nbytes)
    return tuple(placed)


def of_row(weight: Weight) -> torch.Size:
    """The shape of one of a weight's rows, of which several may be one expert's."""
    if weight.row is not None:
        return weight.shape
    return torch.Size((weight.shape[0] // weight.rows, *weight.shape[1:]))


def align(nbytes: int) -> int:
    """The next boundary on which a weight may start."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
