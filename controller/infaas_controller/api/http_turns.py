"""What one turn of the loop reads, over all REST connections: how long that takes, and that it ends.

libuv looks at the sockets again without ending the turn when 1,024 of them were ready at once, up to 48 times: with
that many callers a turn may read 49,000 queries and last for seconds, in which no timer rings and no other task goes
on. So a connection that is read late in a long turn is not read again before the turn has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from infaas.clock import Clock

READ_FREELY = 1_000
"""Pieces; below what makes libuv look again."""
MANY = 256
"""A long turn that read fewer pieces was long for something else: a model that runs inside, most of all."""


class Reader(Protocol):
    """A connection's transport (`asyncio.ReadTransport`)."""

    def is_closing(self) -> bool: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


class Turns:
    """One per application; belongs to one event loop."""

    def __init__(self, clock: Clock, ended: Callable[[], None]) -> None:
        """`ended` is called at the end of each turn that read anything."""
        self._clock = clock
        self._ended = ended
        self.number = 0
        """Of the turn at hand."""
        self.reading_s = 0.0
        """How long the last turn took, from its first piece to its end; 0 if it read few."""
        self.began_at = 0.0
        """The turn at hand, once something was read in it."""
        self._pieces = 0
        self._resting: list[Reader] = []

    def reads(self, connection: Reader) -> None:
        """Call it for every piece that comes."""
        self._pieces += 1
        if self._pieces == 1:
            self.began_at = self._clock.now()
            asyncio.get_running_loop().call_soon(self._ends)
        elif self._pieces > READ_FREELY:
            connection.pause_reading()
            self._resting.append(connection)

    def _ends(self) -> None:
        pieces, self._pieces = self._pieces, 0
        self.number += 1
        self.reading_s = self._clock.now() - self.began_at if pieces >= MANY else 0.0
        if self._resting:
            resting, self._resting = self._resting, []
            for connection in resting:
                if not connection.is_closing():
                    connection.resume_reading()
        self._ended()
