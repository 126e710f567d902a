"""When a run is taken for hung: a pure bound, far above anything that a slow machine or a long queue can explain."""

from __future__ import annotations

from typing import NamedTuple

MOST_STALL = 0.9
"""The host never takes more than this for long; a bound must stay finite."""
_UNMEASURED_LOADS = 5
"""Times the least that a load is given."""


class Patience(NamedTuple):
    least_s: float = 10.0
    """No run is taken for hung before this, however short it should be."""
    factor: float = 20.0
    """Nor before this many times what it takes in the slowest hundredth of cases."""
    unmeasured_s: float = 60.0
    """For runs of which nothing was measured, and for what first runs set up besides what was measured."""
    load_least_s: float = 60.0
    """No load is taken for hung before this; nor before `factor` times what it took when it was measured."""


def bound_s(slow_s: float | None, stall_ratio: float, patience: Patience, *, is_first: bool = False) -> float:
    """Seconds that a run is given. `slow_s`: its p99 by the profile; `stall_ratio`: the share of time that the host is
    taking from this machine now, in which a run makes no progress either; `is_first`: a warm-up, which allocates and
    compiles what later runs find, and often beside other loads."""
    if slow_s is None:
        usual_s = patience.unmeasured_s
    else:
        usual_s = patience.factor * slow_s + (patience.unmeasured_s if is_first else 0.0)
    return stretched_s(max(patience.least_s, usual_s), stall_ratio)


def stretched_s(given_s: float, stall_ratio: float) -> float:
    """What takes so long undisturbed, while the host takes a share of the time."""
    return given_s / (1.0 - min(max(stall_ratio, 0.0), MOST_STALL))


def load_bound_s(load_s: float | None, patience: Patience) -> float:
    """Seconds that a load is given once its artifact is here. `load_s`: by the profile; None: not measured."""
    if load_s is None:
        return _UNMEASURED_LOADS * patience.load_least_s
    return max(patience.load_least_s, patience.factor * load_s)


def paused_s(last_tick_at: float | None, now: float, period_s: float) -> float:
    """For how long this process itself did not get on (stopped, its machine suspended or overloaded): the excess of a
    tick that is late by more than its period. What ran meanwhile got on as little, or its end could not be noticed."""
    if last_tick_at is None:
        return 0.0
    excess_s = now - last_tick_at - period_s
    return excess_s if excess_s > period_s else 0.0
