"""Whether the generator itself was the bound, and which figures are then not to be trusted.

Latency counts from the scheduled moment, so a generator that is late makes the system look slower than it is; one that
has no time left sends less than it was told to, or gets its answers later than they came.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

BUSY_CPU_SHARE = 0.9
"""Of one core: the loop runs on one."""
LATE_S = 0.002
"""A query that left so long after its moment was late."""
MOST_LATE_SHARE = 0.01
MOST_LAG_S = 0.02
LATENCY_OFF_SHARE = 0.1
"""A delay of the generator's own matters from that share of the median latency on."""


@dataclass(frozen=True, slots=True)
class Generator:
    """What the generator saw of itself."""

    cpu_share: float
    """Processor time of its process over wall time; 1 is one whole core."""
    lag_p99_s: float
    """How much later than asked for its event loop came round."""
    lag_max_s: float
    late_share: float = 0.0
    """Queries that left more than 2 ms after their moment; open loop only."""
    late_p99_s: float = 0.0
    waited_for_connection: int = 0
    most_connections: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    distrust: str
    """The figures that this spoils, and in which direction."""


def findings(own: Generator, *, is_open: bool, p50_s: float | None, is_stopped: bool) -> tuple[Finding, ...]:
    """Empty: the figures are the system's."""
    return tuple(_findings(own, is_open, p50_s, is_stopped))


def _findings(own: Generator, is_open: bool, p50_s: float | None, is_stopped: bool) -> Iterator[Finding]:
    if own.cpu_share >= BUSY_CPU_SHARE:
        yield Finding(
            f"the generator used {own.cpu_share:.0%} of a core, which is all it can use",
            "throughput is the generator's, the system can do more; latencies are too high",
        )
    if is_open and own.late_share > MOST_LATE_SHARE:
        yield Finding(
            f"{own.late_share:.1%} of the queries left more than {LATE_S * 1e3:g} ms after their moment "
            f"(p99 {own.late_p99_s * 1e3:.1f} ms)",
            "latencies and what was on time look worse than they are, and arrivals were not as scheduled",
        )
    if own.lag_p99_s > MOST_LAG_S:
        yield Finding(
            f"the generator's event loop came round late (p99 {own.lag_p99_s * 1e3:.1f} ms, "
            f"at most {own.lag_max_s * 1e3:.0f} ms)",
            "latencies, the upper percentiles above all, hold the generator's own delays",
        )
    elif p50_s is not None and own.lag_p99_s > max(0.002, LATENCY_OFF_SHARE * p50_s):
        yield Finding(
            f"the generator's event loop came round up to {own.lag_p99_s * 1e3:.1f} ms late (p99), which is much "
            f"beside a median latency of {p50_s * 1e3:.1f} ms",
            "upper percentiles hold the generator's own delays",
        )
    if own.waited_for_connection:
        yield Finding(
            f"{own.waited_for_connection} queries found all {own.most_connections} connections busy and waited here",
            "the loop was not open then: the server saw fewer queries at once than were due (--connections allows more)"
            if is_open
            else "latencies hold the wait for a connection (--connections allows more)",
        )
    if is_stopped:
        yield Finding(
            "the run was ended before its time", "shares and percentiles are those of what was sent until then"
        )
