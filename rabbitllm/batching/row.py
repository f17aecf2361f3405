"""One sequence of a batch: its prompt, how it chooses tokens, and what it has said."""

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from rabbitllm.batching.chooser import Chooser
from rabbitllm.model import StreamedModel
from rabbitllm.prompt import room
from rabbitllm.text import Answer, TextStream, end_of_text, generate


@dataclass(frozen=True)
class Share:
    """How likely the model found a token, before temperature and the like.

    Attributes:
        token: its id.
        logprob: natural logarithm of its probability.
        top: the likeliest ids there and their logarithms, best first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Row:
    """A prompt and its answer, on the way or over.

    Made by `Batch.add`; the arguments are described there.

    Attributes:
        prompt: its token ids.
        limit: the most tokens of the answer.
        answer: how it went, once it is over; cancelled if it never began. Its exception is what
            ended it.
        past: tokens of it that the batch's cache holds.
        came: as which of the batch's rows it began, the last time that it did.
        shares: of the generated tokens, if they were asked for.
    """

    def __init__(
        self,
        model: StreamedModel,
        prompt: Sequence[int],
        emit: Callable[[str], object],
        *,
        max_new_tokens: int,
        stop: Sequence[str | int] = (),
        top: int | None = None,
        seed: int | None = None,
        processors: Sequence[LogitsProcessor] = (),
        **options: Any,
    ) -> None:
        self.prompt = list(prompt)
        self.limit = min(max_new_tokens, room(model, len(self.prompt)))
        self.answer: Future[Answer] = Future()
        self.past = self.came = 0
        self.shares: list[Share] = []
        self._model = model
        self._ends = end_of_text(model)
        self._stop_ids = {each for each in stop if isinstance(each, int)}
        self._stop = [each for each in stop if isinstance(each, str)]
        self._said: list[str] = []
        self._heard = emit
        self._stream = TextStream(model.tokenizer, self._emit, self._stop)
        self._top = top
        self._seed, self._processors, self._options = seed, processors, options
        self._chooser: Chooser | None = None
        self._cancelled = threading.Event()
        self._begun = time.perf_counter()
        self._first: float | None = None

    def _emit(self, text: str) -> None:
        self._said.append(text)
        self._heard(text)

    @property
    def text(self) -> str:
        """What was said so far."""
        return "".join(self._said)

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
            token = likeliest if plain else self._chooser.choose(self.ids, logits)
            if self._top is not None:
                self.shares.append(share(token, logits.float().log_softmax(-1), self._top))
            self._put(token)
        except Exception as error:  # of its processors, or of who listens
            self.fail(error)

    def _put(self, token: int) -> None:
        self._first = self._first or time.perf_counter()
        if token in self._stop_ids:
            self._stream.end()
            self.tokens.append(token)
            self._over("stop")
            return
        self._stream.put([token])
        if self._stream.stopped or token in self._ends:
            self.end("stop")
        elif len(self.tokens) >= self.limit:
            self.end("length")

    def end(self, reason: Literal["stop", "length", "cancelled"]) -> None:
        """Ends it here."""
        self._stream.end()
        self._over(reason)

    def give_up(self) -> None:
        """Ends it, whatever its listener makes of that."""
        try:
            self.end("cancelled")
        except Exception as error:  # of who listens
            self.fail(error)

    def _over(self, reason: Literal["stop", "length", "cancelled"]) -> None:
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
        recorders = [_Recorder(self.shares, self._top)] if self._top is not None else []
        try:
            answer = generate(
                self._model,
                torch.tensor([self.prompt], device=self._model.device),
                self._emit,
                max_new_tokens=self.limit,
                stop=self._stop,
                cancelled=self._cancelled,
                keep=self.tokens,
                ends=self._stop_ids,
                logits_processor=LogitsProcessorList([*self._processors, *recorders]),
                **self._options,
            )
            for recorder in recorders:
                recorder.settle(self.tokens[-1])
        except Exception as error:  # its owner's to handle, whatever it is
            self.fail(error)
        else:
            self.answer.set_result(answer)


class _Recorder(LogitsProcessor):
    """Notes the shares of tokens that stock's `generate` chooses."""

    def __init__(self, shares: list[Share], top: int) -> None:
        self._shares, self._top = shares, top
        self._open: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.settle(int(input_ids[0, -1]))
        self._open = scores[0].float().log_softmax(-1)
        return scores

    def settle(self, token: int) -> None:
        """Notes the token that was chosen last."""
        if self._open is not None:
            self._shares.append(share(token, self._open, self._top))


def share(token: int, logprobs: torch.Tensor, top: int) -> Share:
    """A token's, and that of the `top` likeliest, from logprobs [vocabulary]."""
    best = logprobs.topk(top)
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return Share(token, float(logprobs[token]), tuple(pairs))
