"""The fewest worker-seconds that a trace takes for whoever knows it, and how long a worker takes to start."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise


def per_second(arrivals: Iterable[float], seconds: int) -> list[int]:
    """Queries that come in each second of a trace, from their moments in seconds."""
    counts = Counter(int(at) for at in arrivals)
    return [counts[second] for second in range(seconds)]


def worker_seconds(counts: Sequence[int], capacity: float, startup_s: float) -> float:
    """Of a fleet that always has as many workers as the second's queries take, each worth `capacity` queries a second.

    The n-th worker is wanted in the seconds that more than n - 1 could not carry, whatever the others do. Between two
    of these it is kept, or given back and started again in time, whichever is less. Whoever is wanted from the first
    second on is there; others start, as far as there is time for it, within the trace.
    """
    wanted = [math.ceil(count / capacity) for count in counts]
    total = 0.0
    for number in range(1, max(wanted, default=0) + 1):
        busy = [second for second, workers in enumerate(wanted) if workers >= number]
        total += len(busy) + min(float(busy[0]), startup_s)
        total += sum(min(float(after - before - 1), startup_s) for before, after in pairwise(busy))
    return total
