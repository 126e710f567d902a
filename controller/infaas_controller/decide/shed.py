"""What share of the queries that are alike a loop turns away unread, when reading and answering them all is more than
it can do.

Where the model is the bound, the queues say how late an answer would be. Where the loop itself is, queries wait in
their sockets, and nobody knows for how long; but the loop knows how long its own turns take, and whoever is read in one
has waited for some part of the one before. Long turns that do not end are a standing queue (Nichols and Jacobson,
"Controlling Queue Delay", CACM 2012): more comes than is disposed of. Refusing costs a part of what serving does, so
there is a share of refusals at which the loop keeps up, and serves as many as it can. A turn costs something by itself,
so its length tells how near to its bound a loop is that keeps up: it goes as one over what is left. The share is moved
by the logarithm of how far a turn is from what it should take.

Callers who each wait for an answer before they ask again make long turns too, and nothing is wrong. So it begins only
when turns take so much of a query's time that being on time is in danger, and then holds them well below: the fewer
connections have something on the way, the warmer each is, and the less a query costs, whether answered or refused. That
is for a while only: where refusing costs nearly what answering does, turns stay as long with those callers whatever is
refused, so the share is given back until turns are long again, or nobody is turned away.
"""

from __future__ import annotations

import math

from infaas.domain.query import Priority

BEGIN_SHARE = {Priority.CRITICAL: 0.3, Priority.STANDARD: 0.15, Priority.SHEDDABLE: 0.075}
"""Of a query's time: a turn of the loop that takes more of it is long, and some are turned away from then on. The less
urgent are the first."""
HOLD_SHARE = {Priority.CRITICAL: 0.1, Priority.STANDARD: 0.05, Priority.SHEDDABLE: 0.025}
"""Of a query's time: what a turn should take while some are turned away. The more urgent are let in again first."""
LEAST_S = 0.005
"""A turn that is shorter is long for nobody."""
LEAST_HELD_S = 0.002
"""No turn is held below that: a batch and what comes with it take a part of it whatever is turned away."""
GAIN_PER_S = 3.0
"""How fast the share goes when turns take e times what they should."""
MOST_UP, MOST_DOWN = 3.0, 1.0
"""Of that, at most: one very long turn is no queue, and a short one does not say that the queue is gone."""
STEP_S = 0.1
"""What passed since the last turn counts for as much at most; what is beyond it was a pause, and goes downwards."""
HOLDS_S = 1.0
"""Turns are held for so long after the last one that was long."""
GIVES_BACK_PER_S = 0.5
"""From then on the share falls at least so fast, as long as no turn is long."""
MOST = 0.98
"""Some are always let in: what they meet is what the decision knows."""
LONG_REFUSING_S = 0.008
"""A turn in which queries were turned away took too long for everybody: even telling them so is more than the loop can
do. Some of those connections are to rest."""
HELD_REFUSING_S = 0.005
"""What such a turn should have taken: so many rest that the others would have made one of that length."""
WAKING_S = 0.002
"""A turn that takes less has room for some of those that rest. Shorter than any turn that is held, so that connections
are heard again when fewer need to be turned away, and not instead."""


class Shed:
    """Of queries that are alike."""

    __slots__ = ("_due", "_holds_until", "_seen_at", "held_s", "last_long_s", "long_s", "share")

    def __init__(self, within_s: float, priority: Priority, now: float) -> None:
        """`within_s`: the time such a query has in all."""
        self.long_s = max(LEAST_S, BEGIN_SHARE[priority] * within_s)
        """Turns of the loop beyond that are too long for them, in seconds."""
        self.held_s = max(LEAST_HELD_S, HOLD_SHARE[priority] * within_s)
        """What a turn should take while some of them are turned away."""
        self.last_long_s = 0.0
        """The last one that was."""
        self.share = 0.0
        """Of them all, is turned away."""
        self._seen_at = self._holds_until = now
        self._due = 0.0

    def saw(self, turn_s: float, now: float) -> None:
        """The last turn of the loop took that long, and reading was what took it; else it is 0."""
        passed_s = now - self._seen_at
        self._seen_at = now
        if turn_s > self.long_s:
            self.last_long_s = turn_s
            self._holds_until = now + HOLDS_S
        elif not self.share:
            return
        step_s = min(passed_s, STEP_S)
        rest = max(0.0, self.share - GAIN_PER_S * MOST_DOWN * (passed_s - step_s))
        by_s = GAIN_PER_S * self._error(turn_s)
        if now >= self._holds_until:
            by_s = min(by_s, -GIVES_BACK_PER_S)
        self.share = min(MOST, max(0.0, rest + by_s * step_s))

    def _error(self, turn_s: float) -> float:
        """How far a turn is above what it should take."""
        if turn_s <= 0.0:
            return -MOST_DOWN
        return max(-MOST_DOWN, min(MOST_UP, math.log(turn_s / self.held_s)))

    def takes(self) -> bool:
        """Whether the next one is turned away: as evenly as the share allows."""
        self._due += self.share
        if self._due < 1.0:
            return False
        self._due -= 1.0
        return True


def resting_of(told: int, turn_s: float) -> int:
    """How many of the connections whose queries were turned away in a turn are not to be read in the next ones."""
    return 0 if turn_s <= LONG_REFUSING_S else int(told * (1.0 - HELD_REFUSING_S / turn_s))
