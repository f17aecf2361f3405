"""How long a connection may dawdle, and which one goes when there are too many."""

import asyncio
import sys
from collections.abc import Collection
from typing import Any

import psutil
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

PATIENCE = 10.0
"""Seconds in which a client sends the head of a request, or takes some of what it is sent."""
MOST = 1_000
"""Connections at once, if the process may open that many files."""


class Connection(H11Protocol):
    """One connection, with uvicorn's own `limit_concurrency` as the limit of all.

    A newcomer beyond it takes the place of the connection that waits longest for its request to
    arrive: whoever opens many and says nothing loses them. One address has half of the places.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._most = self.limit_concurrency or MOST
        self._since = self.loop.time()
        self._dropped = False
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def _answering(self) -> bool:
        """A request is here, and its answer is not out."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.more_body and not cycle.response_complete

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_something()
        here: list[Connection] = [c for c in self.connections if not c._dropped]  # type: ignore[union-attr, misc]
        neighbours = [c for c in here if c._address == self._address]
        if len(neighbours) > self._most // 2:
            _drop_one(neighbours)
        elif len(here) >= self._most:
            _drop_one(here)

    @property
    def _address(self) -> str | None:
        return self.client[0] if self.client else None

    @override
    def handle_events(self) -> None:
        super().handle_events()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._unset_alarm()  # the head is here; the gate looks after the body

    @override
    def on_response_complete(self) -> None:
        self._expect_something()
        super().on_response_complete()

    @override
    def pause_writing(self) -> None:
        super().pause_writing()
        self._expect_something()

    @override
    def resume_writing(self) -> None:
        super().resume_writing()
        if self._answering:
            self._unset_alarm()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._unset_alarm()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Ends the connection at once, whatever is still to be sent."""
        self._dropped = True
        self.transport.abort()

    def _expect_something(self) -> None:
        self._unset_alarm()
        self._since = self.loop.time()
        self._alarm = self.loop.call_later(PATIENCE, self.drop)

    def _unset_alarm(self) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None


def most_connections() -> int:
    """Connections that leave as many file descriptors to those being accepted, and to the model."""
    if sys.platform == "win32":
        return MOST
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST
    return max(4, min(MOST, (soft - psutil.Process().num_fds()) // 3))


def _drop_one(connections: Collection[Connection]) -> None:
    """Drops the one that waits longest for its request: the newcomer, if others are answered."""
    waiting = [c for c in connections if not c._answering]
    if waiting:
        min(waiting, key=lambda c: c._since).drop()
