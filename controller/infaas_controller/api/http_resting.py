"""Connections that are not read for a while, because even turning their queries away is more than the loop can do.

Who was told that there is too much to do, and asks again at once, waits in his socket meanwhile; so not all who ask
have to be heard before anybody is served. They are heard again a few at a time while turns are short, and each after
`RESTS_S` at the latest. A query that may have waited so long is turned away like the one before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from infaas.clock import Clock
from infaas_controller.decide.shed import LONG_REFUSING_S, resting_of

RESTS_S = 1.0
"""What `Retry-After` asks of those who were turned away."""
WAKES_EVERY_S = 0.005
WAKES_AT_ONCE = 32
"""So many are heard again in that time while turns are short: all of 2,000 in a third of a second."""


class Sleeper(Protocol):
    """A connection's transport (`http_transport.JoiningTransport`)."""

    has_rested: bool
    """Whether its next query may have waited unread for long."""

    def rest(self) -> None:
        """Read nothing until `wake`."""

    def wake(self) -> None: ...


class Resting:
    """One per application; belongs to one event loop."""

    def __init__(self, clock: Clock, count: Callable[[int], None]) -> None:
        """`count` is told how many are sent to rest."""
        self._clock = clock
        self._count = count
        self._told: list[Sleeper] = []
        """In this turn, that there is too much to do."""
        self._resting: deque[tuple[float, Sleeper]] = deque()
        self._turn_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._resting)

    def told(self, connection: Sleeper) -> None:
        """Its query was turned away unread."""
        self._told.append(connection)

    def turn_ended(self, turn_s: float) -> None:
        """A turn that took so long is over."""
        self._turn_s = turn_s
        if not self._told:
            return
        told, self._told = self._told, []
        count = resting_of(len(told), turn_s)
        if not count:
            return
        now = self._clock.now()
        for connection in told[-count:]:  # who came late in the turn has had the longer wait, and will again
            connection.rest()
            self._resting.append((now, connection))
        self._count(count)
        if self._timer is None:
            self._look_later()

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(WAKES_EVERY_S, self._look)

    def _look(self) -> None:
        self._timer = None
        due = self._clock.now() - RESTS_S
        left = WAKES_AT_ONCE if self._turn_s < LONG_REFUSING_S / 2 else 0
        while self._resting and (left > 0 or self._resting[0][0] <= due):
            _, connection = self._resting.popleft()
            connection.has_rested = True
            connection.wake()
            left -= 1
        if self._resting:
            self._look_later()
