"""The order in which stages run: behind the last of one token comes the first of the next."""

from collections.abc import Iterable

from rabbitllm.streaming.weights import Stage


class Ring:
    """Stages in the order of a forward, without an end, and the one that runs.

    A stage may be there several times. Before the first forward the order is a guess.

    Args:
        order: the stages.
    """

    def __init__(self, order: Iterable[Stage]) -> None:
        self._order = list(order)
        self._position = -1

    def __len__(self) -> int:
        """How many stages one forward runs."""
        return len(self._order)

    def learn(self, order: list[Stage]) -> None:
        """Takes the order of a forward that has just run."""
        self._order, self._position = order, len(order) - 1

    def advance(self, stage: Stage) -> None:
        """Moves on to the next occurrence of `stage`, if it is there."""
        size = len(self._order)
        for step in range(1, size + 1):
            if self._order[(self._position + step) % size] is stage:
                self._position = (self._position + step) % size
                return

    def ahead(self, count: int) -> list[Stage]:
        """The `count` stages that come next, or all if there are fewer, nearest first."""
        size = len(self._order)
        ahead: dict[str, Stage] = {}
        for step in range(1, size + 1):
            stage = self._order[(self._position + step) % size]
            ahead.setdefault(stage.name, stage)
            if len(ahead) == count:
                break
        return list(ahead.values())
