"""What one turn of the loop reads, over all REST connections: how long that takes, and that it ends.

libuv looks at the sockets again without ending the turn when 1,024 of them were ready at once, up to 48 times: with
that many callers a turn may read 49,000 queries and last for seconds, in which no timer rings and no other task goes
on. So a connection that is read late in a long turn is not read again before the turn has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from infaas.clock import Clock
from infaas.observe.log import get_logger

READ_FREELY = 1_000
"""Pieces; below what makes libuv look again."""
MANY = 64
BUSY_SHARE = 0.25
"""A turn that read fewer pieces, or in which the loop computed for less of the time, was long for something else: a
model that ran beside it on the same core, most of all."""

FOLLOWS = 1.0
"""A turn that begins later than so many times the length of the one before has not waited for it."""

_log = get_logger(__name__)


class Reader(Protocol):
    """A connection's transport (`http_transport.JoiningTransport`)."""

    def rest(self) -> None:
        """Read nothing until `wake`."""

    def wake(self) -> None: ...

    def abort(self) -> None: ...


class Turns:
    """One per application; belongs to one event loop."""

    def __init__(
        self, clock: Clock, ended: Callable[[], None], computed_s: Callable[[], float] = time.thread_time
    ) -> None:
        """`ended` is called at the end of each turn that read anything. `computed_s`: how long this thread has had a
        processor in all."""
        self._clock = clock
        self._computed_s = computed_s
        self._ended = ended
        self.number = 0
        """Of the turn at hand."""
        self.reading_s = 0.0
        """How long the turn before took to read all that was there; 0 if that was little, or if it was not just before:
        who comes after a pause has not waited for it."""
        self.began_at = 0.0
        """The turn at hand, once something was read in it; on the loop's clock, too."""
        self._ended_at = self._computed_before_s = 0.0
        self._pieces = 0
        self._resting: list[Reader] = []

    def reads(self, connection: Reader) -> None:
        """Call it for every piece that comes."""
        self._pieces += 1
        if self._pieces == 1:
            self.began_at = self._clock.now()
            self._computed_before_s = self._computed_s()
            if self.began_at - self._ended_at > FOLLOWS * self.reading_s:
                self.reading_s = 0.0
            asyncio.get_running_loop().call_soon(self._ends)
        elif self._pieces > READ_FREELY:
            connection.rest()
            self._resting.append(connection)

    def _ends(self) -> None:
        pieces, self._pieces = self._pieces, 0
        self.number += 1
        self._ended_at = self._clock.now()
        took_s, self.reading_s = self._ended_at - self.began_at, 0.0
        if pieces >= MANY and self._computed_s() - self._computed_before_s >= BUSY_SHARE * took_s:
            self.reading_s = took_s
        resting, self._resting = self._resting, []
        for connection in resting:
            try:
                connection.wake()
            except Exception as error:  # it costs this caller his connection, and the others nothing
                _log.error("a connection could not be read on", exc_info=error)
                connection.abort()
        self._ended()
