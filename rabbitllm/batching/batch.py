"""Batched generation: sequences join and leave between passes over the weights.

Every pass takes one token of each sequence that is being answered. A prompt joins them there, in
chunks, or by forwards of its own before, whichever has sequences wait less. The forward is stock's,
with a left-padded batch and stock's cache; tokens are chosen by stock's processors.

transformers' own continuous batching was measured beside a padded batch of stock's `generate`:
SmolLM2 streamed on two cores, 8 prompts: 20 tokens/s and 6.5 GB in use, against 53. It also needs
attention kernels for paged caches, which not every model has, and its arguments differ from release
to release.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from rabbitllm.batching.joining import least_width
from rabbitllm.batching.memory import HEADROOM, Memory
from rabbitllm.batching.offloading import can_offload
from rabbitllm.batching.passes import Passes
from rabbitllm.batching.row import Row
from rabbitllm.batching.sharing import can_share, rope_bound
from rabbitllm.model import StreamedModel


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
        prompts_first: answers stand still until the prompts have been read that there is room for,
            but for those that take several forwards each. That takes fewer passes, where nobody
            reads along.

    Raises:
        ValueError: it is to be in the host's memory, and cannot.

    Attributes:
        waiting: sequences that there is no room for yet, in the order of their turn.
        shares: the model's sequences can share passes.
    """

    def __init__(
        self,
        model: StreamedModel,
        most: int = 256,
        offloaded: bool | None = None,
        prompts_first: bool = False,
    ) -> None:
        if offloaded and not can_offload(model):
            raise ValueError(
                "A cache in the host's memory comes to one GPU, layer by layer: the model is on "
                f"{' and '.join(map(str, model.streaming_plan.device_bytes))}. Leave out offloaded."
            )
        self.model = model
        self.waiting: deque[Row] = deque()
        self.shares = can_share(model)
        self._place = offloaded
        self._most = most
        self._bound = rope_bound(model)
        self._came = 0  # rows so far
        self._memory = Memory(model, bool(offloaded))
        self._passes = Passes(model, self._memory, self.waiting.appendleft, prompts_first)

    @property
    def running(self) -> list[Row]:
        """Sequences that have a part in the pass of all."""
        return self._passes.running

    @property
    def joining(self) -> list[Row]:
        """Those whose prompts go by forwards of their own, or are to, before they run."""
        return self._passes.joining

    @property
    def begun(self) -> list[Row]:
        """All that have begun and are not answered yet."""
        return self._passes.rows

    @property
    def passes(self) -> int:
        """Forwards so far, whichever sequences had a part in them."""
        return self._passes.forward.passes

    @property
    def offloaded(self) -> bool:
        """The cache of those that run, or ran last, is in the host's memory."""
        return self._memory.offloaded

    @property
    def held_columns(self) -> int:
        """Tokens of the longest sequence that the cache holds."""
        return self._passes.columns

    @property
    def asked(self) -> bool:
        """Some sequence is not answered yet."""
        return bool(self.begun or self.waiting)

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
        """A pass of all that run, behind one of prompts that go by themselves where there are any.

        Or one answer of a sequence that can share none. What goes wrong ends the sequences that it
        concerns: see `Row.answer`.

        Returns:
            Whether anything is asked still.
        """
        try:
            self._passes.leave()
            self._admit()
            if self.begun:
                self._passes.run()
            elif self.waiting:
                self.waiting.popleft().run_alone()
        except Exception as error:  # goes to each of them
            self._passes.end_all(error)
        return self.asked

    def _admit(self) -> None:
        """Lets in who is next, as long as there is room: nobody overtakes who waits for more."""
        while self.waiting and len(others := self._passes.rows) < self._most:
            row = self.waiting[0]
            if row.answer.done():  # given up
                self.waiting.popleft()
                continue
            if not self.shares or (self._bound is not None and row.longest > self._bound):
                break
            width = min(row.pending, least_width(self.model.device, len(others) + 1))
            fits, held = self._memory.fits, self._passes.held
            if others and not fits([*others, row], width, held, more=HEADROOM):
                break
            self.waiting.popleft()
            if row.begin():
                if not others and self._place is None:
                    asked = [row, *islice(self.waiting, self._most - 1)]
                    self._memory.offloaded = self._memory.pays_to_offload(asked)
                self._came += 1
                row.came = self._came
                self.joining.append(row)
