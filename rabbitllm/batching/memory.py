"""What sequences of a batch take, and whether there is room for it."""

from bisect import bisect_left
from collections.abc import Sequence

from rabbitllm.batching.cache import slack_bytes
from rabbitllm.batching.offloading import PINNED, can_offload, pays
from rabbitllm.batching.row import Row
from rabbitllm.model import StreamedModel
from rabbitllm.streaming.working import Work, read_geometry
from rabbitllm.utils.memory import available_host_memory

HEADROOM = 256
"""Tokens of its answer that a sequence must have room for to begin."""


class Memory:
    """What the budget of a model has room for.

    Args:
        model: of the sequences.
        offloaded: their cache lies in the host's memory.

    Attributes:
        offloaded: see above; may change while no sequence has a cache.
    """

    def __init__(self, model: StreamedModel, offloaded: bool) -> None:
        self.offloaded = offloaded
        self._model = model
        self._geometry = read_geometry(model.config)

    def held(self, rows: int, columns: int) -> Work:
        """What a cache of so many rows and columns holds."""
        return Work(rows, 0, columns, offloaded=self.offloaded)

    def cached(self, rows: int, tokens: int) -> int:
        """Bytes of a cache of so many rows of so many tokens, wherever it lies."""
        return self._geometry.cached(Work(rows, 0, tokens)) * self._model.dtype.itemsize

    def fits(
        self,
        rows: Sequence[Row],
        width: int,
        held: Sequence[Work],
        *,
        more: int = 0,
        logits: int | None = None,
        others: Sequence[Work] = (),
        offloaded: bool | None = None,
    ) -> bool:
        """Whether there is memory for these rows, `more` tokens further on than they are now.

        Args:
            rows: at once.
            width: tokens of the pass.
            held: the caches that theirs is made of, as they are.
            more: see above.
            logits: positions whose logits the pass gives; by default as many as there may be.
            others: caches that are left alone.
            offloaded: with their cache in the host's memory; None for where it is.
        """
        away = self.offloaded if offloaded is None else offloaded
        longest = max(min(row.longest, row.past + row.pending + more) for row in rows)
        positions = min(width, len(rows)) if logits is None else logits
        work = Work(len(rows), width, max(0, longest - width), positions, offloaded=away)
        if away:
            taken = sum(self.cached(each.sequences, each.past) for each in held)
            if PINNED * (self.cached(len(rows), longest) - taken) > available_host_memory():
                return False
        beyond = sum(map(self._slack, others))
        rooms = self._model._rooms
        with rooms.leaving(others):
            return rooms.fits(
                work,
                *held,
                beside=lambda each: self._slack(each) + (beyond if each is work else 0),
            )

    def pays_to_offload(self, asked: Sequence[Row]) -> bool:
        """Whether these rows had better have a cache in host memory."""
        if not can_offload(self._model):
            return False
        on_device, on_host = (self._count_fitting(asked, away) for away in (False, True))
        tokens = sum(row.longest for row in asked) // len(asked)
        coming = self._model.streaming_plan.coming(self._model._moved_sizes, on_host)
        return pays(on_device, on_host, sum(coming.values()), self.cached(on_host, tokens))

    def _count_fitting(self, asked: Sequence[Row], offloaded: bool) -> int:
        """How many of the rows there is room for at once, of which one may always try."""

        def full(count: int) -> bool:
            return not self.fits(asked[:count], 1, [], more=HEADROOM, offloaded=offloaded)

        return 1 + bisect_left(range(2, len(asked) + 1), True, key=full)

    def _slack(self, work: Work) -> int:
        return slack_bytes(self._geometry, self._model.dtype, work)
