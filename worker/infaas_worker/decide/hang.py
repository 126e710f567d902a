"""When a run is taken for hung: a pure bound, far above anything that a slow machine or a long queue can explain."""

from __future__ import annotations

from typing import NamedTuple

MOST_STALL = 0.9
"""The host never takes more than this for long; a bound must stay finite."""


class Patience(NamedTuple):
    least_s: float = 10.0
    """No run is taken for hung before this, however short it should be."""
    factor: float = 20.0
    """Nor before this many times what it takes in the slowest hundredth of cases."""
    unmeasured_s: float = 60.0
    """For runs of which nothing was measured."""


def bound_s(slow_s: float | None, stall_ratio: float, patience: Patience) -> float:
    """Seconds that a run is given. `slow_s`: its p99 by the profile; `stall_ratio`: the share of time that the host is
    taking from this machine now, in which a run makes no progress either."""
    usual_s = patience.unmeasured_s if slow_s is None else patience.factor * slow_s
    return max(patience.least_s, usual_s) / (1.0 - min(max(stall_ratio, 0.0), MOST_STALL))
