"""Kernels of Triton's by which a device looks rows up: see `row_work.Kernels`."""

import torch
import triton
import triton.language as tl

from rabbitllm.checkpoint.codecs.launch import ROW_KERNELS, Rows, decodes_rows
from rabbitllm.streaming.devices.encoded import Encoded
from rabbitllm.streaming.devices.row_work import NEVER, Found, Known

PROGRAMS = 32
"""That copy a row. With eight rows, four reach the link's pace (50.5 GB/s, where the copy engine
makes 53.3); within the device 16 make 1,030 GB/s, and 64 make 1,270 (H100, PCIe 5)."""
WORDS = 1024
"""That one copies at a time."""


@triton.jit  # type: ignore[untyped-decorator]
def _look_up(
    asked,
    numbers,
    home,
    place,
    slot,
    held,
    used,
    counts,
    now,
    places,
    sources,
    coming,
    keeping,
    no_row,
    no_slot,
    ROWS: tl.constexpr,
    SLOTS: tl.constexpr,
    NEVER: tl.constexpr,
):
    time = tl.load(now) + 1
    row, at = tl.arange(0, ROWS), tl.arange(0, SLOTS)
    held_at = tl.load(held + at, mask=at < no_slot, other=-1)
    used_at = tl.load(used + at, mask=at < no_slot, other=NEVER)
    present = tl.zeros([ROWS], tl.int32)
    for i in range(numbers):
        number = tl.load(asked + i)
        there = (number >= 0) & (number < no_row)
        present = tl.where((row == number) & there, 1, present)
        used_at = tl.where((held_at == number) & there, time, used_at)
    behind = tl.cumsum(present, 0) - 1
    for i in range(numbers):
        number = tl.load(asked + i)
        place_of = tl.sum(tl.where(row == number, behind, 0), 0)
        there = (number >= 0) & (number < no_row)
        tl.store(places + i, tl.where(there, place_of, numbers))

    in_slot = tl.load(place + row, mask=row < no_row, other=-1)
    hit = (present == 1) & (in_slot >= 0)
    absent = tl.where((present == 1) & (in_slot < 0), 1, 0)
    kept = tl.load(slot + in_slot, mask=hit, other=0)
    far = tl.load(home + row, mask=row < no_row, other=0)
    tl.store(sources + behind, tl.where(hit, kept, far), mask=present == 1)
    tl.store(coming + behind, absent, mask=present == 1)

    # All warps load what is known, and one alone may store it. Where a few rows are each loaded by
    # all of them nothing else makes those ahead wait, and one behind would load what comes now.
    tl.debug_barrier()
    rank, missing = tl.cumsum(absent, 0) - 1, tl.sum(absent, 0)
    keeps = tl.zeros([ROWS], tl.int64)
    for i in range(missing):
        number = tl.sum(tl.where((absent == 1) & (rank == i), row, 0), 0)
        oldest = tl.min(used_at, 0)
        free = oldest < time  # else all slots have rows that were asked for now
        victim = tl.min(tl.where(used_at == oldest, at, SLOTS), 0)
        was = tl.sum(tl.where(at == victim, held_at, 0), 0)
        tl.store(place + was, -1, mask=free)
        tl.store(place + number, victim, mask=free)
        address = tl.load(slot + victim, mask=free, other=0)
        keeps = tl.where((row == number) & free, address, keeps)
        held_at = tl.where((at == victim) & free, number, held_at)
        used_at = tl.where((at == victim) & free, time, used_at)
    tl.store(keeping + behind, keeps, mask=present == 1)
    found = tl.sum(present, 0)
    rest = (row >= found) & (row < numbers)
    tl.store(sources + row, 0, mask=rest)
    tl.store(coming + row, 0, mask=rest)
    tl.store(keeping + row, 0, mask=rest)
    tl.store(held + at, held_at, mask=at < no_slot)
    tl.store(used + at, used_at, mask=at < no_slot)
    tl.store(counts, tl.load(counts) + found)
    tl.store(counts + 1, tl.load(counts + 1) + missing)
    tl.store(now, time)


@triton.jit  # type: ignore[untyped-decorator]
def _copy(source, write, kept, words, WORDS: tl.constexpr):
    # Rows begin on boundaries: told so, the compiler moves more at once.
    read = tl.multiple_of(source.to(tl.pointer_type(tl.int64)), 16)
    keep = tl.multiple_of(kept.to(tl.pointer_type(tl.int64)), 16)
    step = tl.num_programs(1) * WORDS
    for first in range(tl.program_id(1) * WORDS, words, step):
        word = first + tl.arange(0, WORDS)
        values = tl.load(read + word, mask=word < words)
        tl.store(write + word, values, mask=word < words)
        tl.store(keep + word, values, mask=(word < words) & (kept != 0))


@triton.jit  # type: ignore[untyped-decorator]
def _copy_rows(sources, keeping, table, words, width, WORDS: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    source, kept = tl.load(sources + row), tl.load(keeping + row)
    if source != 0:
        _copy(source, table + row * width, kept, words, WORDS)


@triton.jit  # type: ignore[untyped-decorator]
def _fetch_rows(
    sources,
    coming,
    table,
    words,
    width,
    stored,
    stored_words,
    stored_width,
    WORDS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    source, comes = tl.load(sources + row), tl.load(coming + row)
    if source != 0:
        if comes != 0:
            _copy(source, stored + row * stored_width, comes * 0, stored_words, WORDS)
        else:
            _copy(source, table + row * width, comes * 0, words, WORDS)


@triton.jit  # type: ignore[untyped-decorator]
def _place_rows(
    coming, keeping, offset, table, width, stored, stored_width, words, WORDS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    if tl.load(coming + row) != 0:
        kept = tl.load(keeping + row)
        kept = tl.where(kept != 0, kept + offset, 0)
        source = (stored + row * stored_width).to(tl.int64)
        _copy(source, table + row * width, kept, words, WORDS)


def look_up(asked: torch.Tensor, known: Known, found: Found) -> None:
    """See `row_work.Kernels`."""
    no_row, no_slot = len(known.home) - 1, len(known.slot) - 1
    with torch.cuda.device(asked.device):
        _look_up[1,](
            asked,
            len(asked),
            known.home,
            known.place,
            known.slot,
            known.held,
            known.used,
            known.counts,
            known.now,
            found.places,
            found.sources,
            found.coming,
            found.keeping,
            no_row,
            no_slot,
            ROWS=triton.next_power_of_2(max(no_row, len(asked))),
            SLOTS=triton.next_power_of_2(no_slot),
            NEVER=NEVER,
        )


def copy_rows(found: Found, table: torch.Tensor) -> None:
    """See `row_work.Kernels`."""
    words = table.view(torch.int64)
    with torch.cuda.device(table.device):
        _copy_rows[len(words), PROGRAMS](
            found.sources, found.keeping, words, words.shape[1], words.stride(0), WORDS=WORDS
        )


def fetch_rows(found: Found, table: torch.Tensor, stored: torch.Tensor) -> None:
    """See `row_work.Kernels`."""
    words, stored_words = table.view(torch.int64), stored.view(torch.int64)
    with torch.cuda.device(table.device):
        _fetch_rows[len(words), PROGRAMS](
            found.sources,
            found.coming,
            words,
            words.shape[1],
            words.stride(0),
            stored_words,
            stored_words.shape[1],
            stored_words.stride(0),
            WORDS=WORDS,
        )


def decode_rows(found: Found, table: torch.Tensor, stored: torch.Tensor, encoded: Encoded) -> None:
    """See `row_work.Kernels`."""
    with torch.cuda.device(table.device):
        for portion in encoded.portions:
            if not portion.pieces:
                _place(found, table, portion.target, stored[:, portion.source])
            for piece in portion.pieces:
                first, target = portion.source.start, piece.target
                sources = [stored[:, first + at.start : first + at.stop] for at in piece.sources]
                which = Rows(found.coming, found.keeping, target.start)
                decode = ROW_KERNELS[type(piece.codec)]
                decode(piece.codec, sources, table[:, target], which)


def _place(found: Found, table: torch.Tensor, target: slice, stored: torch.Tensor) -> None:
    """Enqueues what copies what is stored as it computes."""
    source, words = stored.view(torch.int64), table[:, target].view(torch.int64)
    _place_rows[len(words), PROGRAMS](
        found.coming,
        found.keeping,
        target.start,
        words,
        words.stride(0),
        source,
        source.stride(0),
        words.shape[1],
        WORDS=WORDS,
    )


def decodes(encoded: Encoded) -> bool:
    """Whether rows can be decoded that are stored like this."""
    pieces = (piece for portion in encoded.portions for piece in portion.pieces)
    return all(decodes_rows(piece.codec) for piece in pieces)
