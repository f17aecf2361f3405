"""What a forward may take beside the weights: asked before it starts.

A forward that needs more than the plan left, in a budget of a size, is refused, and so is one that
needs more than is free, where the budget is "auto" or "min". A prompt of `generate` goes through in
chunks before that: stock transformers' own way for long prompts.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from rabbitllm.errors import BudgetError
from rabbitllm.streaming.blocks import block_of, find_blocks
from rabbitllm.streaming.ceiling import Ceiling
from rabbitllm.streaming.plan import Plan
from rabbitllm.streaming.staged import StagedModel
from rabbitllm.streaming.working import Work
from rabbitllm.utils.memory import format_size

logger = logging.getLogger(__name__)

LEAST_CHUNK = 64
"""Tokens: with fewer at a time, a long prompt would take more passes than anybody waits for."""
NEAR = 0.5
"""Of the budget. On a CPU a forward can take 1.6 times what is in use, in holes between it."""
STEADY = 0.95
"""Of what is free, that it will be when the forward begins a moment later."""
STEP = 256
"""Tokens that a suggested `max_seq_len` is a multiple of."""


@dataclass
class Room:
    """What a model may take beside its weights.

    Attributes:
        setting: the argument that it comes from: "device_memory" or "host_memory".
        nbytes: what the budget leaves beside the weights.
        least: bytes of weights that the model can run with.
        needed: what a forward takes, of which the cache has taken a part already.
        taken: that part.
        free: bytes that may be taken beyond the budget; None where the budget is a size.
        ceiling: of what torch may hold; None where the budget is no size, and on CPU.
        near: called before a forward that comes near the budget.
        where: what to say of the device behind the argument, where there are several.
    """

    setting: str
    nbytes: int
    least: int
    needed: Callable[[Work], int]
    taken: Callable[[Work], int]
    free: Callable[[], int] | None = None
    ceiling: Ceiling | None = None
    near: Callable[[], None] = lambda: None
    where: str = ""
    _told: bool = field(default=False, init=False)
    _left: int = field(default=0, init=False)  # bytes of other caches than a forward's own

    @contextmanager
    def without(self, nbytes: int, what: str) -> Iterator[None]:
        """Leaves so much of it to something else meanwhile.

        Args:
            nbytes: that it takes.
            what: it is called.

        Raises:
            BudgetError: there is less.
        """
        most = self.nbytes if self.free is None else max(self.nbytes, self.free())
        if nbytes > most:
            raise BudgetError(
                f"{what} takes {format_size(nbytes)} beside the weights, and {self.setting} leaves "
                f"{format_size(max(0, most))}. Leave it out, or raise {self.setting}."
            )
        self.nbytes -= nbytes
        try:
            yield
        finally:
            self.nbytes += nbytes

    @contextmanager
    def leaving(self, others: Sequence[Work]) -> Iterator[None]:
        """Counts caches that forwards leave alone meanwhile.

        Args:
            others: what each of them holds.
        """
        self._left = sum(map(self._cached, others))
        try:
            yield
        finally:
            self._left = 0

    def admit(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """Lets a forward with these arguments begin, or not.

        Raises:
            BudgetError: it needs more memory than there is; the message says what would do.
        """
        work = work_of(arguments, keywords)
        if self.ceiling:
            self.ceiling.begin(work, self._left)
        needed = self.needed(work) + self._left
        if needed > NEAR * self.nbytes:
            self.near()
        if needed <= self.nbytes or needed <= (most := self._most(work)):
            return
        tokens = self._tokens_for(needed)
        total = self.least + self.needed(Work(1, tokens))
        cached = f" behind {work.past}" if work.past else ""
        asking = " with the logits of all" if work.logits == work.new > 1 else ""
        raise BudgetError(
            f"{work.sequences} x {work.new} tokens{cached}{asking} need {format_size(needed)} "
            f"beside the weights, and {self.setting} leaves {format_size(max(0, most))}"
            f"{self.where}. Give the model fewer at a time, or load it with max_seq_len={tokens} "
            f"and {self.setting}={total} ({format_size(total)}) or more."
        )

    def fits(self, work: Work, *held: Work, beside: Callable[[Work], int] = lambda _: 0) -> bool:
        """Whether there is memory for a forward with this work.

        Args:
            work: what it is given.
            held: what its cache holds already, or what the caches do that it is made of.
            beside: bytes that work takes beside what it is known to.
        """
        needed = self.needed(work) + beside(work) + self._left
        if needed <= self.nbytes or self.free is None:
            return needed <= self.nbytes
        cached = sum(self._cached(each) + beside(each) for each in held)
        return needed <= self.taken(Work(0, 0)) + cached + self._left + self.free()

    def chunk(self, work: Work) -> int | None:
        """How many tokens of a prompt to take at a time; None if all, or if that would not help."""
        if self.needed(work) <= self.nbytes:
            return None
        most = max(self.nbytes, int(STEADY * self._most(work)))
        if self.needed(work) <= most:
            return None
        least, above = 0, work.new  # the first fits, as far as is known; the second does not
        while above - least > 1:
            middle = (least + above) // 2
            least, above = (
                (middle, above) if self.needed(work.cut(middle)) <= most else (least, middle)
            )
        if least < LEAST_CHUNK:
            return None
        if not self._told:
            logger.warning(
                "%d x %d tokens need more memory than %s leaves beside the weights: they go "
                "through the model %d at a time, %d times. The numbers can differ in their last "
                "bits. With max_seq_len=%d it keeps room for them at once.",
                work.sequences,
                work.new,
                self.setting,
                least,
                -(-work.new // least),
                self._tokens_for(self.needed(work)),
            )
            self._told = True
        return least

    def _most(self, work: Work) -> int:
        """What the work may take: by the budget, or of what is free at this moment."""
        if self.free is None:
            return self.nbytes
        return max(self.nbytes, self.taken(work) + self._left + self.free())

    def _cached(self, held: Work) -> int:
        """Bytes of `taken` that are a cache's."""
        return self.taken(held) - self.taken(Work(0, 0))

    def _tokens_for(self, needed: int) -> int:
        """The least `max_seq_len` that keeps so much room."""
        above = 1
        while self.needed(Work(1, above * STEP)) < needed:
            above *= 2
        least = above // 2
        while above - least > 1:
            middle = (least + above) // 2
            least, above = (
                (middle, above) if self.needed(Work(1, middle * STEP)) < needed else (least, middle)
            )
        return above * STEP


@dataclass(frozen=True)
class Rooms:
    """What a model may take on each of its devices: a forward must have room on all of them.

    Attributes:
        each: the devices' rooms.
    """

    each: Sequence[Room]

    def watch(self, staged: StagedModel, plan: Plan, before: Callable[[], None]) -> None:
        """Keeps to the ceilings in every forward.

        Args:
            staged: the model.
            plan: says which device computes which of its stages.
            before: see `Ceiling`.
        """
        # Experts are asked within a block: it has kept to them by then.
        parts = [each for each in staged.stages if not each.pinned and not each.least_rows]
        blocks = find_blocks(staged.model)
        for ceiling in filter(None, (room.ceiling for room in self.each)):
            ceiling.before = before
            here = [each for each in parts if plan.places[each.name].device == ceiling.device]
            names = dict.fromkeys(block_of(each.name, blocks) for each in here)
            mine = [block for name, block in blocks.items() if name in names]
            ceiling.watch(mine, (each.modules[0] for each in here))

    def admit(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> None:
        """See `Room.admit`."""
        for room in self.each:
            room.admit(arguments, keywords)

    def make_room(self, nbytes: int) -> None:
        """Has so many bytes more keep to the ceilings, which are taken outside of a forward."""
        for ceiling in filter(None, (room.ceiling for room in self.each)):
            ceiling.make_room(nbytes)

    def without(self, nbytes: int, what: str) -> AbstractContextManager[None]:
        """See `Room.without`; it is on the first device."""
        return self.each[0].without(nbytes, what)

    @contextmanager
    def leaving(self, others: Sequence[Work]) -> Iterator[None]:
        """See `Room.leaving`."""
        with ExitStack() as stack:
            for room in self.each:
                stack.enter_context(room.leaving(others))
            yield

    def fits(self, work: Work, *held: Work, beside: Callable[[Work], int] = lambda _: 0) -> bool:
        """See `Room.fits`."""
        return all(room.fits(work, *held, beside=beside) for room in self.each)

    def chunk(self, work: Work) -> int | None:
        """See `Room.chunk`."""
        return min((chunk for room in self.each if (chunk := room.chunk(work))), default=None)


def work_of(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Work:
    """What a forward with these arguments is given; nothing if that cannot be told."""
    inputs = [*arguments[:1], keywords.get("input_ids"), keywords.get("inputs_embeds")]
    ids = next((each for each in inputs if isinstance(each, torch.Tensor) and each.dim() > 1), None)
    if ids is None:
        return Work(0, 0)
    sequences, new = ids.shape[:2]
    mask = keywords.get("attention_mask", arguments[1] if len(arguments) > 1 else None)
    if isinstance(mask, torch.Tensor) and mask.dim() == 2:
        past = max(0, mask.shape[1] - new)
    else:
        past = next((_length(each) for each in keywords.values() if _is_cache(each)), 0)
    kept = keywords.get("logits_to_keep", 0)
    logits = kept.numel() if isinstance(kept, torch.Tensor) else min(kept, new) or new
    scored = keywords.get("labels") is not None
    offloaded = any(getattr(each, "offloading", False) for each in keywords.values())
    return Work(sequences, new, past, logits, scored, offloaded)


def _is_cache(value: Any) -> bool:
    return hasattr(value, "get_seq_length")


def _length(cache: Any) -> int:
    """Tokens that a cache holds; none where it has states instead."""
    try:
        return int(cache.get_seq_length() or 0)
    except ValueError:
        return 0
