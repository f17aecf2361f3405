"""The passes of a batch: one of all that run, and before it one of prompts by themselves.

A prompt that is through joins those that run: its cache is put into theirs. Those whose turn to go
by themselves has yet to come wait for it: whatever they were through with others would be void.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rabbitllm.batching.cache import RowsCache
from rabbitllm.batching.forward import Forward
from rabbitllm.batching.joining import narrowed, own_width, saves, shared_width, widest
from rabbitllm.batching.memory import Memory
from rabbitllm.batching.row import Row
from rabbitllm.errors import BudgetError
from rabbitllm.model import StreamedModel
from rabbitllm.streaming.working import Work


@dataclass(frozen=True)
class Apart:
    """Rows whose prompts go by themselves, and their cache, which has them in this order."""

    rows: list[Row]
    held: RowsCache


class Passes:
    """Takes sequences that there is room for through the model.

    Args:
        model: what they go through.
        memory: that there is for them.
        put_back: is given a sequence that there is no room for any more.
        prompts_first: see `Batch`.

    Attributes:
        forward: what calls the model.
        joining: sequences whose prompts go by forwards of their own, or are to, and who has just
            come.
        running: those that have a part in the pass of all.
    """

    def __init__(
        self,
        model: StreamedModel,
        memory: Memory,
        put_back: Callable[[Row], None],
        prompts_first: bool = False,
    ) -> None:
        self.forward = Forward(model)
        self.joining: list[Row] = []
        self.running: list[Row] = []
        self._model = model
        self._memory = memory
        self._give = put_back
        self._prompts_first = prompts_first
        self._held: RowsCache | None = None
        self._places: list[Row | None] = []  # who lies where in it; None if nobody does any more
        self._apart: Apart | None = None

    @property
    def rows(self) -> list[Row]:
        """All of them."""
        return [*self.running, *self.joining]

    @property
    def columns(self) -> int:
        """Tokens of each sequence in the cache of those that run, padding included."""
        return self._held.columns if self._held else 0

    @property
    def held(self) -> list[Work]:
        """What caches hold."""
        return [*self._held_together(), *self._held_apart()]

    def run(self) -> None:
        """A pass of all that run, behind one of prompts by themselves where there are any.

        Where prompts come first, there is none of those who run as long as others take their turn.
        """
        self._choose_ways()
        apart = self._apart
        if apart:
            self._read(apart)
        if not self.running:
            return
        through = apart is not None and self._apart is apart and not self._goes_apart()
        if through and self._prompts_first and self.joining:
            self._lay_out()
        else:
            self._pass()

    def leave(self) -> None:
        """Takes out who is answered or has given up; who comes may take their places."""
        for row in self.rows:
            if row.cancelled and not row.answer.done():
                row.give_up()
        self.running = [row for row in self.running if not row.answer.done()]
        self.joining = [row for row in self.joining if not row.answer.done()]
        if not self._goes_apart():
            self._apart = None
        if not self.running:
            self._held, self._places = None, []

    def end_all(self, error: Exception) -> None:
        """Ends them with an error."""
        for row in self.rows:
            if not row.answer.done():
                row.fail(error)
        self.running, self.joining, self._places = [], [], []
        self._held = self._apart = None

    def _choose_ways(self) -> None:
        """Has the longest prompts go by themselves where that saves, one group after another.

        Others go with all, and so do those whose turn is behind several forwards of one prompt. Who
        has begun there may change over and begin anew: a forward costs the same with what it has
        been through.
        """
        if self._apart:  # whoever has come since then goes with all
            going = self._apart.rows
            self.running += [row for row in self.joining if row not in going]
            self.joining = [row for row in self.joining if row in going]
            return
        device, count = self._model.device, len(self.rows)
        shared = shared_width(device, count)
        long = [row for row in self.rows if row.pending > shared]
        group = self._fitting(widest(device, long))
        own = self._own_width(group) if group else 0
        if not own or not saves(group, own, shared, count - len(group)):
            self.running += self.joining
            self.joining = []
            return
        self._take_out(group)
        once = len(group[0].ids) <= own
        turns = [row for row in self.joining if once and row in long]
        self.running += [row for row in self.joining if row not in turns]
        self.joining = [*group, *turns]
        self._apart = Apart(group, self._new_cache())

    def _fitting(self, rows: list[Row]) -> list[Row]:
        """The first of the rows, as many as there is room for by themselves; one in any case."""

        def full(count: int) -> bool:
            return not self._fits_apart(rows[:count], len(rows[0].ids))

        if len(rows) > 1 and len(self._places) > len(self.running) and full(len(rows)):
            self._lay_out()  # who has left makes room
        return rows[: max(1, bisect_left(range(1, len(rows) + 1), True, key=full))]

    def _own_width(self, rows: Sequence[Row]) -> int:
        """Tokens of each that go through at once by themselves; 0 if there is no room for them."""
        most = min(own_width(self._model.device, len(rows)), len(rows[0].ids))
        if len(rows) == 1:
            most = narrowed(most, lambda width: self._fits_apart(rows, width))
        return most if self._fits_apart(rows, most) else 0

    def _fits_apart(self, rows: Sequence[Row], width: int) -> bool:
        held, others = self._held_apart(), self._held_together()
        return self._memory.fits(rows, width, held, logits=1, others=others)

    def _read(self, apart: Apart) -> None:
        """A forward of prompts by themselves; those that are through run from now on."""
        width = self._own_width(apart.rows)
        if width:
            self._forward_or_put_back(apart.rows, apart.held, width, self._held_together())
        if not width or all(row.pending <= 1 for row in apart.rows):
            self.joining = [row for row in self.joining if row not in apart.rows]
            self.running += [row for row in apart.rows if not row.answer.done()]

    def _pass(self) -> None:
        """One forward, and a token for each sequence whose prompt is through."""
        while not self._fits(width := self._width()) and len(self.rows) > 1:
            self._put_back()
            if not self.running:
                return
        self._lay_out()
        assert self._held is not None, "who runs has a cache"
        self._forward_or_put_back(self.running, self._held, width, self._held_apart())

    def _width(self) -> int:
        """Tokens of the next pass, of the sequence that brings most."""
        pending = max(row.pending for row in self.running)
        return narrowed(
            min(pending, shared_width(self._model.device, len(self.running))), self._fits
        )

    def _fits(self, width: int) -> bool:
        """Whether there is memory for a pass of all that run."""
        apart, together = self._held_apart(), self._held_together()
        if self._goes_apart():
            return self._memory.fits(self.running, width, together, others=apart)
        return self._memory.fits(self.running, width, [*together, *apart])

    def _lay_out(self) -> None:
        """Has the cache hold those that run, and no others.

        Who comes takes the place of who has gone: to lay the whole cache out anew takes time, and
        twice the memory of a layer. Where more go than come, or come than go, it is done once.
        """
        apart = None
        if self._apart and not self._goes_apart():
            apart = self._apart if self._apart.held.columns else None
            self._apart = None
        runs = set(self.running)
        staying = runs.intersection(self._places)
        if not any(row.past for row in staying):  # nothing of it is of use
            self._held, self._places = self._new_cache(), []
            if apart:
                self._held, self._places, apart = apart.held, [*apart.rows], None
            staying = runs.intersection(self._places)
        places = self._places
        coming = deque(row for row in self.running if row not in staying)
        after: list[tuple[int, Row]] = []
        for place, row in enumerate(places):
            if row and row in staying:
                after.append((place, row))
            elif coming:
                after.append((place, coming.popleft()))
        after += [(0, row) for row in coming]
        self.running = [row for _, row in after]
        self._places = list(self.running)
        if self._held and (apart or after != list(enumerate(places))):
            at = {row: place for place, row in enumerate(self.running)}
            self._held.lay_out(
                [place for place, _ in after],
                max(row.past for row in self.running),
                apart.held if apart else None,
                [at.get(row) for row in apart.rows] if apart else [],
            )

    def _forward_or_put_back(
        self, rows: Sequence[Row], held: RowsCache, width: int, others: Sequence[Work]
    ) -> None:
        """One forward, and a token for each of the rows whose prompt is through.

        Args:
            rows: of it.
            held: their cache.
            width: tokens of each at most.
            others: caches beside theirs.
        """
        try:
            with self._model._rooms.leaving(others):
                logits = self.forward(rows, held, width)
        except BudgetError:  # nothing was computed
            if len(self.rows) == 1:
                raise
            self._put_back()
            return
        likeliest = logits.argmax(-1).tolist()
        for i, row in enumerate(row for row in rows if not row.pending):
            row.advance(logits[i], likeliest[i])

    def _new_cache(self) -> RowsCache:
        config = self._model.config.get_text_config(decoder=True)
        device = self._model.device if self._memory.offloaded else None
        return RowsCache(config, device, self._model._rooms.make_room)

    def _goes_apart(self) -> bool:
        """Prompts go by themselves, and are not through."""
        return bool(self._apart and self._apart.rows[0] in self.joining)

    def _held_together(self) -> list[Work]:
        return [self._memory.held(len(self._places), self.columns)] if self._held else []

    def _held_apart(self) -> list[Work]:
        apart = self._apart
        return [self._memory.held(len(apart.rows), apart.held.columns)] if apart else []

    def _put_back(self) -> None:
        """Has the youngest wait again: what it has said is a part of its prompt from then on."""
        row = max(self.rows, key=lambda row: row.came)
        if self._apart and row in self._apart.rows and self._goes_apart():
            self._apart = None  # it is the only one, or nothing has been read
        self._take_out([row])
        self._give(row)

    def _take_out(self, rows: Sequence[Row]) -> None:
        """Has these be neither here nor there, as if they had not been read."""
        self.running = [row for row in self.running if row not in rows]
        self.joining = [row for row in self.joining if row not in rows]
        self._places = [None if row in rows else row for row in self._places]
        for row in rows:
            row.past = 0
