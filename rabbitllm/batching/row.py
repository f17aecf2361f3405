"""One sequence of a batch: its prompt, how it chooses tokens, and what it has said."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, Literal

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from rabbitllm.batching.chooser import Chooser
from rabbitllm.model import StreamedModel
from rabbitllm.prompt import room
from rabbitllm.text import Answer, TextStream, end_of_text, generate


class Row:
    """A prompt and its answer, on the way or over.

    Made by `Batch.add`; the arguments are described there.

    Attributes:
        prompt: its token ids.
        limit: the most tokens of the answer.
        answer: how it went, once it is over; cancelled if it never began. Its exception is what
            ended it.
        past: tokens of it that the batch's cache holds.
    """

    def __init__(
        self,
        model: StreamedModel,
        prompt: Sequence[int],
        emit: Callable[[str], object],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        seed: int | None = None,
        processors: Sequence[LogitsProcessor] = (),
        **options: Any,
    ) -> None:
        self.prompt = list(prompt)
        self.limit = min(max_new_tokens, room(model, len(self.prompt)))
        self.answer: Future[Answer] = Future()
        self.past = 0
        self._model = model
        self._ends = end_of_text(model)
        self._stream = TextStream(model.tokenizer, emit, stop)
        self._emit, self._stop = emit, stop
        self._seed, self._processors, self._options = seed, processors, options
        self._chooser: Chooser | None = None
        self._cancelled = threading.Event()
        self._begun = time.perf_counter()
        self._first: float | None = None

    @property
    def tokens(self) -> list[int]:
        """The ids that were generated, an end-of-text token included."""
        return self._stream.tokens

    @property
    def ids(self) -> list[int]:
        """Prompt and answer so far."""
        return self.prompt + self.tokens

    @property
    def pending(self) -> int:
        """Tokens that have not been through the model."""
        return len(self.prompt) + len(self.tokens) - self.past

    @property
    def longest(self) -> int:
        """Tokens of prompt and answer, if it comes to its limit."""
        return len(self.prompt) + self.limit

    @property
    def cancelled(self) -> bool:
        """Somebody gave up before it was over."""
        return self._cancelled.is_set()

    def cancel(self) -> None:
        """Ends the answer with the pass under way, or before it begins; from any thread."""
        self._cancelled.set()
        self.answer.cancel()

    def begin(self) -> bool:
        """Called when it is about to have a part in passes; False if it is over by then."""
        if self._chooser is not None:  # it was put back
            return True
        if not self.answer.set_running_or_notify_cancel():
            return False
        try:
            self._chooser = Chooser(
                self._model,
                self.prompt,
                limit=self.limit,
                ends=sorted(self._ends),
                seed=self._seed,
                processors=self._processors,
                **self._options,
            )
        except Exception as error:  # what the options are worth is its owner's
            self.fail(error)
        return not self.answer.done()

    def advance(self, logits: torch.Tensor, likeliest: int) -> None:
        """Chooses the next token; `answer` is there if it was the last.

        Args:
            logits: [vocabulary].
            likeliest: the id of the largest of them.
        """
        assert self._chooser is not None, "it has begun"
        try:
            plain = self._chooser.plain
            self._put(likeliest if plain else self._chooser.choose(self.ids, logits))
        except Exception as error:  # of its processors, or of who listens
            self.fail(error)

    def _put(self, token: int) -> None:
        self._first = self._first or time.perf_counter()
        self._stream.put([token])
        if self._stream.stopped or token in self._ends:
            self.end("stop")
        elif len(self.tokens) >= self.limit:
            self.end("length")

    def end(self, reason: Literal["stop", "length", "cancelled"]) -> None:
        """Ends it here."""
        self._stream.end()
        now = time.perf_counter()
        first = self._first or now
        counts = len(self.prompt), len(self.tokens)
        self.answer.set_result(Answer(*counts, reason, first - self._begun, now - first))

    def fail(self, error: BaseException) -> None:
        """Ends it with an error."""
        self.answer.set_exception(error)

    def run_alone(self) -> None:
        """The whole answer by stock's `generate`, for a model whose rows cannot share passes."""
        if not self.answer.set_running_or_notify_cancel():
            return
        if self._seed is not None:
            torch.manual_seed(self._seed)
        try:
            answer = generate(
                self._model,
                torch.tensor([self.prompt], device=self._model.device),
                self._emit,
                max_new_tokens=self.limit,
                stop=self._stop,
                cancelled=self._cancelled,
                keep=self.tokens,
                logits_processor=LogitsProcessorList(self._processors),
                **self._options,
            )
        except Exception as error:  # its owner's to handle, whatever it is
            self.fail(error)
        else:
            self.answer.set_result(answer)
