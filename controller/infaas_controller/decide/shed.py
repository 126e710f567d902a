"""What share of the queries that are alike a loop turns away unread, when reading and answering them all is more than
it can do.

Where the model is the bound, the queues say how late an answer would be. Where the loop itself is, queries wait in
their sockets, and nobody knows for how long; but the loop knows how long its own turns take, and whoever is read in one
has waited for some part of the one before. Long turns that do not end are a standing queue (Nichols and Jacobson,
"Controlling Queue Delay", CACM 2012): more comes than is disposed of. Refusing costs a part of what serving does, so
there is a share of refusals at which the loop keeps up, and serves as many as it can. It is found by going up while
turns are long for what time such queries have, and down, more slowly, while they are not.
"""

from __future__ import annotations

from infaas.domain.query import Priority

TURN_SHARE = {Priority.CRITICAL: 0.2, Priority.STANDARD: 0.1, Priority.SHEDDABLE: 0.05}
"""Of a query's time: a turn of the loop that takes more of it is long. The less urgent are turned away first."""
LEAST_S = 0.005
"""A turn that is shorter is long for nobody."""
UP_PER_S, DOWN_PER_S = 4.0, 1.0
STEP_S = 0.1
"""What passed since the last turn counts for as much at most, upwards: one long turn is no queue."""
MOST = 0.98
"""Some are always let in: what they meet is what the decision knows."""


class Shed:
    """Of queries that are alike."""

    __slots__ = ("_due", "_seen_at", "last_long_s", "long_s", "share")

    def __init__(self, within_s: float, priority: Priority, now: float) -> None:
        """`within_s`: the time such a query has in all."""
        self.long_s = max(LEAST_S, TURN_SHARE[priority] * within_s)
        """Turns of the loop beyond that are too long for them, in seconds."""
        self.last_long_s = 0.0
        """The last one that was."""
        self.share = 0.0
        """Of them all, is turned away."""
        self._seen_at = now
        self._due = 0.0

    def saw(self, turn_s: float, now: float) -> None:
        """The last turn of the loop took that long, and reading was what took it; else it is 0."""
        passed_s = now - self._seen_at
        self._seen_at = now
        if turn_s > self.long_s:
            self.last_long_s = turn_s
            self.share = min(MOST, self.share + UP_PER_S * min(passed_s, STEP_S))
        else:
            self.share = max(0.0, self.share - DOWN_PER_S * passed_s)

    def takes(self) -> bool:
        """Whether the next one is turned away: as evenly as the share allows."""
        self._due += self.share
        if self._due < 1.0:
            return False
        self._due -= 1.0
        return True
