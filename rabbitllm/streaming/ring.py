"""The order in which stages run: behind the last of one token comes the first of the next.

Gradients need them the other way: the last one first, and behind the first comes the next forward.
"""

from collections.abc import Iterable, Iterator

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
        self._back = False

    def __len__(self) -> int:
        """How many stages one forward runs."""
        return len(self._order)

    def learn(self, order: list[Stage]) -> None:
        """Takes the order of a forward that has just run."""
        self._order, self._position, self._back = order, len(order) - 1, False

    def begin(self) -> None:
        """From here on the stages are going to come from the first one on."""
        self._position, self._back = -1, False

    def turn(self) -> None:
        """From here on the stages are going to come backwards."""
        self._back = True

    def advance(self, stage: Stage, back: bool = False) -> None:
        """Moves to the next occurrence of `stage`, if it is there.

        Args:
            stage: where to.
            back: that it is the next one backwards; it may be where the ring is.
        """
        size, self._back = len(self._order), back
        for step in range(size) if back else range(1, size + 1):
            position = (self._position + (-step if back else step)) % size
            if self._order[position] is stage:
                self._position = position
                return

    def ahead(self, count: int) -> list[Stage]:
        """The `count` stages that come next, or all if there are fewer, nearest first."""
        ahead: dict[str, Stage] = {}
        for stage in self._coming():
            ahead.setdefault(stage.name, stage)
            if len(ahead) == count:
                break
        return list(ahead.values())

    def _coming(self) -> Iterator[Stage]:
        """Yields each stage once at least, nearest first."""
        if self._back:
            yield from reversed(self._order[: self._position + 1])
            yield from self._order
        else:
            yield from self._order[self._position + 1 :]
            yield from self._order[: self._position + 1]
