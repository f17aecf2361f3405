"""Batched generation: sequences join and leave between passes over the weights.

Every pass takes one token of each sequence that is being answered, and beside them a chunk of each
prompt that is not through yet. The forward is stock's, with a left-padded batch and stock's cache;
tokens are chosen by stock's processors.

transformers' own continuous batching was measured beside a padded batch of stock's `generate`:
SmolLM2 streamed on two cores, 8 prompts: 20 tokens/s and 6.5 GB in use, against 53. It also needs
attention kernels for paged caches, which not every model has, and its arguments differ from release
to release.
"""

import inspect
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch

from rabbitllm.batching.cache import SLACK, RowsCache, can_hold_rows, slack_bytes
from rabbitllm.batching.offloading import PINNED, can_offload, pays
from rabbitllm.batching.row import Row
from rabbitllm.errors import BudgetError
from rabbitllm.model import StreamedModel
from rabbitllm.streaming.working import Work, read_geometry
from rabbitllm.utils.memory import available_host_memory

PASS_TOKENS = {"cpu": 256, "cuda": 2048}
"""Tokens of a pass, padding included, that cost little beside the weights' way, or on a CPU seconds
at most; what a prompt may hold others up by."""
LEAST_CHUNK = 8
"""Tokens of a prompt in a pass, however many rows there are."""
HEADROOM = 256
"""Tokens of its answer that a sequence must have room for to begin."""
CACHES = ("cache", "past_key_values")
"""What forwards call their cache, in newer and older releases."""
GROWING_ROPES = ("dynamic", "longrope")
"""Ropes whose frequencies depend on the longest sequence of a batch, beyond a length."""


class Batch:
    """Answers many prompts with one model, which shares every pass among them.

        batch = Batch(model)
        rows = [batch.add(ids, max_new_tokens=64) for ids in prompts]
        batch.run()
        texts = [model.tokenizer.decode(row.tokens) for row in rows]

    Greedy answers are those of each prompt alone up to the rounding of other kernels: batches of
    other shapes add the same numbers in another order, so tokens can part where two are nearly as
    likely. Where the rows of a model cannot be padded, because it keeps states instead of tokens,
    each is answered alone by stock's `generate`.

    To be used from one thread, except for `add` and `Row.cancel`.

    Args:
        model: what generates.
        most: sequences that have a part in a pass at most. Fewer do where memory is short: what
            their caches take lies in the budget, and who does not fit waits.
        offloaded: the cache lies in the host's memory, where there is one GPU. None has it there
            whenever that makes for more tokens a second, as far as bytes that cross the link tell:
            see `rabbitllm.batching.offloading`. It is chosen when a sequence joins while none runs.

    Raises:
        ValueError: it is to be in the host's memory, and cannot.

    Attributes:
        waiting: sequences that have no part in passes yet, in the order of their turn.
        running: those that have.
        shares: the model's sequences can share passes.
        passes: shared ones so far.
        offloaded: the cache of those that run, or ran last, is in the host's memory.
    """

    def __init__(
        self, model: StreamedModel, most: int = 256, offloaded: bool | None = None
    ) -> None:
        if offloaded and not can_offload(model):
            raise ValueError(
                "A cache in the host's memory comes to one GPU, layer by layer: the model is on "
                f"{' and '.join(map(str, model.streaming_plan.device_bytes))}. Leave out offloaded."
            )
        self.model = model
        self.waiting: deque[Row] = deque()
        self.running: list[Row] = []
        self.shares = can_share(model)
        self.passes = 0
        self.offloaded = bool(offloaded)
        self._place = offloaded
        self._most = most
        self._bound = _rope_bound(model)
        self._held: RowsCache | None = None
        self._came = 0  # rows so far
        self._geometry = read_geometry(model.config)
        names = inspect.signature(model.forward).parameters
        self._cache = next((name for name in CACHES if name in names), "")
        self._positions = "position_ids" in names
        self._picks = "logits_to_keep" in names

    @property
    def held_columns(self) -> int:
        """Tokens of the longest sequence that the cache holds."""
        return self._held.columns if self._held else 0

    @property
    def asked(self) -> bool:
        """Some sequence is not answered yet."""
        return bool(self.running or self.waiting)

    def add(
        self,
        prompt: Sequence[int],
        emit: Callable[[str], object] = lambda _: None,
        *,
        max_new_tokens: int,
        **options: Any,
    ) -> Row:
        """Has a prompt answered; it joins as soon as there is room. From any thread.

        Args:
            prompt: token ids.
            emit: called with each new piece of text, from the thread that runs passes.
            max_new_tokens: the most tokens of the answer; the model's context may leave fewer.
            options: `stop`, strings and token ids that end the answer and are no part of its text;
                `top`, of how many of the likeliest tokens to note the shares, see `Row.shares`;
                `seed` of the draws; `processors`, transformers' LogitsProcessor objects; and what
                stock's `generate` takes for the choice of tokens, such as `temperature`.

        Raises:
            ValueError: the prompt is empty, or longer than the model's context.
        """
        row = Row(self.model, prompt, emit, max_new_tokens=max_new_tokens, **options)
        self.waiting.append(row)
        return row

    def run(self) -> None:
        """Passes until all are answered."""
        while self.step():
            pass

    def step(self) -> bool:
        """One pass, or one answer of a sequence that can share none; False if nothing is asked.

        What goes wrong ends the sequences that it concerns: see `Row.answer`.
        """
        try:
            self._change()
            if self.running:
                self._pass()
            elif self.waiting:
                self.waiting.popleft().run_alone()
        except Exception as error:  # goes to each of them
            self._end_all(error)
        return self.asked

    def _change(self) -> None:
        """Takes out who is answered or has given up, and lets in who is next.

        Who comes takes the place of who goes: to lay the whole cache out anew for each of them
        takes time, and twice its memory. Where more go than come, or come than go, it is done once.
        """
        for row in self.running:
            if row.cancelled and not row.answer.done():
                row.end("cancelled")
        before = self.running
        self.running = [row for row in before if not row.answer.done()]
        if not self.running:
            before, self._held = [], None
        staying = len(self.running)
        self._join()
        coming = deque(self.running[staying:])
        places: list[tuple[int, Row]] = []
        for place, row in enumerate(before):
            if not row.answer.done():
                places.append((place, row))
            elif coming:
                places.append((place, coming.popleft()))
        places += [(0, row) for row in coming]
        if places != list(enumerate(before)):
            self._lay_out(places)

    def _join(self) -> None:
        """Lets in who is next, as long as there is room: nobody overtakes who waits for more."""
        while self.waiting and len(self.running) < self._most:
            row = self.waiting[0]
            if row.answer.done():  # given up
                self.waiting.popleft()
                continue
            if not self._can_share(row):
                break
            if self.running and not self._fits([*self.running, row], self._wanted(row), HEADROOM):
                break
            self.waiting.popleft()
            if row.begin():
                self._enter(row)

    def _can_share(self, row: Row) -> bool:
        return self.shares and (self._bound is None or row.longest <= self._bound)

    def _wanted(self, row: Row) -> int:
        """Tokens of the passes in which a row's prompt is to go through, beside those who run."""
        most = PASS_TOKENS[self.model.device.type] // (len(self.running) + 1)
        return min(row.pending, max(LEAST_CHUNK, most))

    def _enter(self, row: Row) -> None:
        if self._held is None:
            if self._place is None:
                self.offloaded = self._pays_to_offload(row)
            config = self.model.config.get_text_config(decoder=True)
            device = self.model.device if self.offloaded else None
            self._held = RowsCache(config, device, self.model._rooms.make_room)
        self._came += 1
        row.came = self._came
        self.running.append(row)

    def _lay_out(self, places: Sequence[tuple[int, Row]]) -> None:
        """Has these rows run, each where the cache held the one of that number."""
        assert self._held is not None, "a row that enters has a cache"
        self.running = [row for _, row in places]
        self._held.select([place for place, _ in places])
        self._settle([0] * len(places))

    def _settle(self, shifts: Sequence[int]) -> None:
        assert self._held is not None
        longest = max(row.past for row in self.running)
        self._held.settle(shifts, self._held.columns - longest)

    def _pass(self) -> None:
        """One forward, and a token for each sequence whose prompt is through."""
        width = self._width()
        while not self._fits(self.running, width, 0) and len(self.running) > 1:
            self._put_back()
            width = self._width()
        new = [min(width, row.pending) for row in self.running]
        try:
            with torch.no_grad():
                logits = self._forward(new, max(new))
        except BudgetError:  # nothing was computed
            if len(self.running) == 1:
                raise
            self._put_back()
            return
        self._choose([row for row in self.running if not row.pending], logits)

    def _put_back(self) -> None:
        """Has the youngest wait again: what it has said is a part of its prompt from then on."""
        row = max(self.running, key=lambda row: row.came)
        row.past = 0
        self.waiting.appendleft(row)
        self._lay_out([(i, each) for i, each in enumerate(self.running) if each is not row])

    def _end_all(self, error: Exception) -> None:
        for row in self.running:
            if not row.answer.done():
                row.fail(error)
        self.running, self._held = [], None

    def _forward(self, new: Sequence[int], width: int) -> torch.Tensor:
        """Logits [rows whose prompt is through, vocabulary], behind so many new tokens of each."""
        assert self._held is not None
        held, rows = self._held, self.running
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), held.columns + width, dtype=torch.long)
        for i, (row, count) in enumerate(zip(rows, new, strict=True)):
            ids[i, :count] = torch.tensor(row.ids[row.past : row.past + count])
            mask[i, held.columns - row.past : held.columns + count] = 1
        counts, pasts = torch.tensor(new), torch.tensor([row.past for row in rows])
        positions = pasts[:, None] + torch.minimum(torch.arange(width), counts[:, None] - 1)
        last = sorted({count - 1 for count in new})
        device = self.model.device
        arguments: dict[str, Any] = {"attention_mask": mask.to(device)}
        if self._positions:
            arguments["position_ids"] = positions.to(device)
        if self._picks:
            only = last == [width - 1]
            arguments["logits_to_keep"] = 1 if only else torch.tensor(last, device=device)
        output = self.model(
            input_ids=ids.to(device),
            use_cache=True,
            **{self._cache: held.cache},
            **arguments,
        )
        self.passes += 1
        held.columns += width
        for row, count in zip(rows, new, strict=True):
            row.past += count
        self._settle([width - count for count in new])
        through = [i for i, row in enumerate(rows) if not row.pending]
        places = {at: i for i, at in enumerate(last)} if self._picks else {}
        at = [places.get(new[i] - 1, new[i] - 1) for i in through]
        logits: torch.Tensor = output.logits[through, at]
        return logits

    def _choose(self, rows: Sequence[Row], logits: torch.Tensor) -> None:
        """Gives each of the rows its next token, from logits [rows, vocabulary]."""
        likeliest = logits.argmax(-1).tolist()
        for i, row in enumerate(rows):
            row.advance(logits[i], likeliest[i])

    def _width(self) -> int:
        """Tokens of the next pass, of the sequence that brings most."""
        pending = max(row.pending for row in self.running)
        width = max(LEAST_CHUNK, PASS_TOKENS[self.model.device.type] // len(self.running))
        if len(self.running) > 1:
            width = min(width, SLACK)
        while width > LEAST_CHUNK and not self._fits(self.running, min(width, pending), 0):
            width //= 2
        return min(width, pending)

    def _fits(
        self, rows: Sequence[Row], width: int, more: int, offloaded: bool | None = None
    ) -> bool:
        """Whether there is memory for these rows, `more` tokens further on than they are now.

        Args:
            rows: at once.
            width: tokens of the pass.
            more: see above.
            offloaded: with their cache in the host's memory; None for where it is.
        """
        away = self.offloaded if offloaded is None else offloaded
        longest = max(min(row.longest, row.past + row.pending + more) for row in rows)
        past, logits = max(0, longest - width), min(width, len(rows))
        work = Work(len(rows), width, past, logits, offloaded=away)
        held = Work(len(self.running), 0, self.held_columns, offloaded=away)
        if away:
            taken = self._cached(len(self.running), self.held_columns)
            grown = self._cached(len(rows), longest) - taken
            if PINNED * grown > available_host_memory():
                return False
        return self.model._rooms.fits(work, held, beside=self._slack)

    def _cached(self, rows: int, tokens: int) -> int:
        """Bytes of a cache of so many rows of so many tokens, wherever it lies."""
        return self._geometry.cached(Work(rows, 0, tokens)) * self.model.dtype.itemsize

    def _pays_to_offload(self, first: Row) -> bool:
        """Whether this row, and who waits behind it, had better have a cache in host memory."""
        if not can_offload(self.model):
            return False
        asked = [first, *islice(self.waiting, self._most - 1)]
        on_device, on_host = (self._count_fitting(asked, away) for away in (False, True))
        tokens = sum(row.longest for row in asked) // len(asked)
        coming = self.model.streaming_plan.coming(self.model._moved_sizes, on_host)
        return pays(on_device, on_host, sum(coming.values()), self._cached(on_host, tokens))

    def _count_fitting(self, asked: Sequence[Row], offloaded: bool) -> int:
        """How many of the rows there is room for at once, of which one may always try."""
        for count in range(2, len(asked) + 1):
            if not self._fits(asked[:count], 1, HEADROOM, offloaded):
                return count - 1
        return len(asked)

    def _slack(self, work: Work) -> int:
        return slack_bytes(self._geometry, self.model.dtype, work)


def can_share(model: StreamedModel) -> bool:
    """Whether sequences of a model can be rows of one padded batch, and come and go."""
    stock: Any = type(model)
    own = stock.__module__.startswith("transformers.models.")
    text = model.config.get_text_config(decoder=True)
    names = inspect.signature(model.forward).parameters
    return (
        own
        and not model.config.is_encoder_decoder
        and "attention_mask" in names
        and any(name in names for name in CACHES)
        and stock._supports_default_dynamic_cache()
        and can_hold_rows(text)
    )


def _rope_bound(model: StreamedModel) -> int | None:
    """Tokens up to which a sequence's positions do not depend on the others' lengths."""
    text = model.config.get_text_config(decoder=True)
    ropes = getattr(text, "rope_parameters", None) or {}
    each = [ropes, *(value for value in ropes.values() if isinstance(value, dict))]
    growing = [rope for rope in each if rope.get("rope_type") in GROWING_ROPES]
    if not growing:
        return None
    trained = growing[0].get("original_max_position_embeddings")
    trained = trained or getattr(text, "original_max_position_embeddings", None)
    return int(trained or text.max_position_embeddings)
