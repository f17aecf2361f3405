"""Which experts the next layer is going to ask for, guessed while this one computes.

What goes through a model changes little from layer to layer. So the next layer's own router, given
what this layer's experts are given, names most of the experts that it is going to name: 80 to 90%,
say https://arxiv.org/abs/2312.17238 and https://arxiv.org/abs/2502.12224.
"""

import inspect
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from rabbitllm.streaming.bare import without_hooks
from rabbitllm.streaming.rows import ShelfRows

TRIED = 8
"""Passes of each kind that tell."""


class _AskedError(Exception):
    """What a block asks of its experts."""

    def __init__(self, numbers: torch.Tensor) -> None:
        super().__init__()
        self.numbers = numbers


class _Listener(nn.Module):
    """Stands in for experts, and only hears what they are asked for."""

    def __init__(self, forward: Callable[..., Any], by: int) -> None:
        super().__init__()
        self._signature = inspect.signature(forward)
        self._by = list(self._signature.parameters)[by]

    @override
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise _AskedError(self._signature.bind(*args, **kwargs).arguments[self._by])


class Trial:
    """Whether guessing makes passes quicker, for so many tokens: tried out, then decided.

    A guess costs the host the time of a router and of waiting for it. Where the link is slow that
    is little beside what it saves; where the host is slow, it is more.
    """

    def __init__(self) -> None:
        self._took: dict[tuple[int, bool], deque[float]] = defaultdict(lambda: deque(maxlen=TRIED))
        self._pass: tuple[int, bool] | None = None
        self._begun = 0.0
        self.on = True

    def begin_pass(self, tokens: int) -> None:
        """A pass with so many tokens begins; what it is behind has come to its end."""
        now = time.perf_counter()
        if self._pass and self._pass[0] == tokens:
            self._took[self._pass].append(now - self._begun)
        self._begun, self.on = now, self._choose(tokens)
        self._pass = tokens, self.on

    def _choose(self, tokens: int) -> bool:
        guessed, asked = self._took[tokens, True], self._took[tokens, False]
        if min(len(guessed), len(asked)) < TRIED:
            return len(guessed) <= len(asked)
        return median(guessed) < median(asked)


class Foresight:
    """Has rows of experts come that the next block is likely to ask for.

    The block's own forward runs, up to the call of its experts, so no router has to be known. Hooks
    see nothing of it: it runs in a copy that shares the weights.

    Args:
        block: whose forward routes tokens and calls the experts.
        experts: what it calls, by its name in the block.
        by: which argument of the experts' forward holds the numbers.
        rows: the experts'.
        trial: whether to guess; the same for all blocks of a model.
        device: where the block computes.
        first: those who ask for this guess are the first of a pass.
    """

    def __init__(
        self,
        block: nn.Module,
        experts: str,
        by: int,
        rows: ShelfRows,
        trial: Trial,
        device: torch.device,
        first: bool = False,
    ) -> None:
        self._rows = rows
        self._trial = trial
        self._device = device
        self._first = first
        self._block = without_hooks(block, experts).eval()
        self._block._modules[experts] = _Listener(block.get_submodule(experts).forward, by)
        self._guess: torch.Tensor | None = None
        self._works = True

    def guess(self, states: torch.Tensor) -> None:
        """Launches the block's routing.

        Args:
            states: what this layer's experts are given: [tokens, hidden].
        """
        self._guess = None
        if self._first:
            self._trial.begin_pass(len(states))
        if not (self._works and self._trial.on) or torch.is_grad_enabled():
            return
        try:
            self._block.forward(states[None].to(self._device))
        except _AskedError as asked:
            self._guess = asked.numbers
        except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
            self._works = False  # it takes more than states, or weights that are not there
        else:
            self._works = False

    def begin(self) -> None:
        """Has the rows come that were guessed last."""
        guess, self._guess = self._guess, None
        if guess is not None:
            counted = Counter(guess.flatten().tolist())
            self._rows.foresee([number for number, _ in counted.most_common()])

    def wants_all(self, asked: int, routes: int) -> bool:
        """See `gather.Ahead`."""
        return self._rows.wants_all(asked, routes)

    def begin_all(self, routes: int, running: bool) -> bool:
        """See `gather.Ahead`."""
        return self._rows.foresee_all(routes, running)
