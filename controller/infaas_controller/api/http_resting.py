"""Connections that are not read for a while, because even turning their queries away is more than the loop can do.

Who was told that there is too much to do, and asks again at once, waits in his socket meanwhile; so not all who ask
have to be heard before anybody is served. They are heard again a few at a time: those who rest longest, while turns are
short, and each when he has rested for `RESTS_S`.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from infaas.clock import Clock
from infaas.observe.log import get_logger
from infaas_controller.decide.shed import WAKING_S, resting_of

RESTS_S = 1.0
"""What `Retry-After` asks of those who were turned away."""
WAKES_EVERY_S = 0.005
WAKES_PER_S = 6_400.0
"""So many are heard again at most, however long turns are: all of 2,000 in a third of a second."""
WAKES_AT_ONCE = 32
"""No fewer than in that time, where a look comes earlier."""

_log = get_logger(__name__)


class Sleeper(Protocol):
    """A connection's transport (`http_transport.JoiningTransport`)."""

    unread_s: float
    """How long what is read of it now may have lain there."""

    def rest(self) -> None:
        """Read nothing until `wake`."""

    def wake(self) -> None: ...

    def abort(self) -> None: ...


Sample = Callable[[Sequence[Sleeper], int], Sequence[Sleeper]]


class Resting:
    """One per application; belongs to one event loop."""

    def __init__(self, clock: Clock, count: Callable[[int], None], sample: Sample = random.sample) -> None:
        """`count` is told how many are sent to rest, `sample` chooses them: by place in the turn, the same would rest
        again and again."""
        self._clock = clock
        self._count = count
        self._sample = sample
        self._told: dict[Sleeper, None] = {}
        """In this turn, that there is too much to do. A turn may read a connection twice."""
        self._resting: deque[tuple[float, Sleeper]] = deque()
        self._woken: dict[Sleeper, None] = {}
        """Since the last look; what lay there is read before the next one."""
        self._looked_at = 0.0
        self._turn_s = self._ended_at = 0.0
        """Of the last turn that read anything."""
        self._timer: asyncio.TimerHandle | None = None
        self._is_over = False

    def __len__(self) -> int:
        """Those that rest, and those where something may have lain unread until now."""
        return len(self._resting) + len(self._woken)

    def told(self, connection: Sleeper) -> None:
        """Its query was turned away unread."""
        self._told[connection] = None

    def turn_ended(self, turn_s: float) -> None:
        """A turn that took so long is over."""
        self._turn_s, self._ended_at = turn_s, self._clock.now()
        if not self._told:
            return
        told, self._told = self._told, {}
        count = resting_of(len(told), turn_s)
        if count and not self._is_over:
            fresh = [connection for connection in told if connection not in self._woken]  # the others have just rested
            self._send_to_rest(self._sample(fresh, min(count, len(fresh))))

    def end(self) -> None:
        """Everybody is heard again, and nobody rests any more."""
        self._is_over = True
        while self._resting:
            self._wake(*self._resting.popleft())

    def _send_to_rest(self, connections: Iterable[Sleeper]) -> None:
        before = len(self._resting)
        for connection in connections:
            try:
                connection.rest()
            except Exception as error:  # it costs this caller his connection, and the others nothing
                _log.error("a connection could not be left unread", exc_info=error)
                connection.abort()
            else:
                self._resting.append((self._ended_at, connection))
        if len(self._resting) > before:
            self._look_later()
            self._count(len(self._resting) - before)

    def _look_later(self) -> None:
        if self._timer is None:
            self._looked_at = self._clock.now()
            self._timer = asyncio.get_running_loop().call_later(WAKES_EVERY_S, self._look)

    def _look(self) -> None:
        self._timer = None
        for connection in self._woken:
            connection.unread_s = 0.0
        self._woken.clear()
        now = self._clock.now()
        count = max(WAKES_AT_ONCE, int(WAKES_PER_S * (now - self._looked_at)))
        is_calm = self._turn_s < WAKING_S or now - self._ended_at > self._turn_s
        for _ in range(count):
            if not self._resting or not (is_calm or now - self._resting[0][0] >= RESTS_S):
                break
            self._wake(*self._resting.popleft())
        if self:
            self._look_later()

    def _wake(self, since: float, connection: Sleeper) -> None:
        connection.unread_s = self._clock.now() - since
        self._woken[connection] = None
        try:
            connection.wake()
        except Exception as error:
            _log.error("a connection could not be read on", exc_info=error)
            connection.abort()
