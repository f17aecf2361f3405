"""What the kernels do that look rows up, by torch and at once."""

from __future__ import annotations

import ctypes

import torch

from rabbitllm.streaming.devices.encoded import Encoded
from rabbitllm.streaming.devices.row_work import Found, Known


def look_up(asked: torch.Tensor, known: Known, found: Found) -> None:
    """See `row_work.Kernels`; on any device."""
    count = len(asked)
    no_row, no_slot = len(known.home) - 1, len(known.slot) - 1
    asked = torch.where((asked < 0) | (asked > no_row), no_row, asked)
    present = torch.zeros_like(known.home, dtype=torch.bool).index_fill_(0, asked, True)
    present[no_row] = False
    behind = present.cumsum(0) - 1
    found.places.copy_(torch.where(asked < no_row, behind[asked], count))
    every = torch.arange(no_row + 1, device=asked.device)
    table = every.new_full((count + 1,), no_row)
    numbers = table.scatter_(0, torch.where(present, behind, count), every)[:count]
    place = known.place[numbers]
    hit, absent = place >= 0, (place < 0) & (numbers < no_row)
    now = known.now.add_(1).expand(count)
    known.used.scatter_(0, torch.where(hit, place, no_slot), now)
    rank = absent.cumsum(0) - 1
    oldest = known.used[:no_slot].argsort()[rank.clamp(0, no_slot - 1)]
    keeps = absent & (rank < no_slot) & (known.used[oldest] < now)
    taken, kept = torch.where(keeps, oldest, no_slot), torch.where(keeps, numbers, no_row)
    known.place.scatter_(0, known.held[taken], -1)
    known.place.scatter_(0, kept, torch.where(keeps, oldest, -1))
    known.held.scatter_(0, taken, kept)
    known.used.scatter_(0, taken, now)
    known.counts.add_(torch.stack([present.sum(), absent.sum()]))
    found.coming.copy_(absent)
    found.sources.copy_(torch.where(hit, known.slot[place], known.home[numbers]))
    found.keeping.copy_(torch.where(keeps, known.slot[oldest], 0))


def copy_rows(found: Found, table: torch.Tensor) -> None:
    """See `row_work.Kernels`; in the host's memory."""
    rows = zip(found.sources.tolist(), table, found.keeping.tolist(), strict=True)
    for source, row, kept in rows:
        for target in (row.data_ptr(), kept) if source else ():
            if target:
                ctypes.memmove(target, source, len(row))


def fetch_rows(found: Found, table: torch.Tensor, stored: torch.Tensor) -> None:
    """See `row_work.Kernels`; in the host's memory."""
    rows = zip(found.sources.tolist(), found.coming.tolist(), table, stored, strict=True)
    for source, comes, row, there in rows:
        assert source or not comes, "what comes is somewhere"
        if source:
            target = there if comes else row
            ctypes.memmove(target.data_ptr(), source, len(target))


def decode_rows(found: Found, table: torch.Tensor, stored: torch.Tensor, encoded: Encoded) -> None:
    """See `row_work.Kernels`; in the host's memory."""
    rows = zip(found.coming.tolist(), table, found.keeping.tolist(), stored, strict=True)
    for comes, row, kept, there in rows:
        if comes:
            _decode(encoded, there, row)
        if comes and kept:
            ctypes.memmove(kept, row.data_ptr(), len(row))


def _decode(encoded: Encoded, stored: torch.Tensor, target: torch.Tensor) -> None:
    for portion in encoded.portions:
        here = stored[portion.source]
        if not portion.pieces:
            target[portion.target] = here
        for piece in portion.pieces:
            piece.codec.decode_on([here[at] for at in piece.sources], target[piece.target])
