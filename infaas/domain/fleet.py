"""The fleet: workers that are ordered from a provider and given back, and what was done about their number and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from infaas.domain.ids import VariantName, WorkerId


class IntentStage(StrEnum):
    ORDERED = "ordered"
    SERVING = "serving"
    """Its worker has come."""
    MISSED = "missed"
    """Its worker had come and is not heard of any more."""
    LEAVING = "leaving"
    """Its worker drains, and is given back then."""


@dataclass(frozen=True, slots=True)
class Intent:
    """One worker that the fleet's leader wants. Written to the store, under the leader's fence, before anything is done
    about it; who comes to lead later finds it there and goes on."""

    id: str
    """Names the machine at the provider, so that making it twice makes one."""
    pool: str
    worker: WorkerId
    asked_at: float
    """Wall clock, seconds since the epoch, as all times here."""
    stage: IntentStage = IntentStage.ORDERED
    since: float = 0.0
    """In this stage."""


@dataclass(frozen=True, slots=True)
class ControllerDemand:
    """What one controller could not serve, for the leader to add to what the workers do. Told by the variant that would
    have had the work, as far as what was answered lately shows, so that the work can be reckoned."""

    at: float
    refused: Mapping[VariantName, float] = field(default_factory=dict)
    """Items per second that were turned away, or given up, for want of capacity."""
    waiting: Mapping[VariantName, float] = field(default_factory=dict)
    """Items that wait."""


class FleetAction(StrEnum):
    ADD = "add"
    DRAIN = "drain"
    REMOVE = "remove"
    GIVE_UP = "give-up"
    HOLD = "hold"
    """More was called for and something stands against it."""
    LOAD = "load"
    """A variant, on a worker that does not have it."""


class FleetCause(StrEnum):
    """A closed set, for metrics; a step's reason has the figures."""

    FLOOR = "floor"
    DEMAND = "demand"
    """The sum of the work."""
    BUSY = "busy"
    INTERFERED = "interfered"
    OVERLOADED = "overloaded"
    ROOMY = "roomy"
    DRAINED = "drained"
    STUCK = "stuck"
    """It was told to drain and did not end."""
    LATE = "late"
    """It was ordered and has not come."""
    ENDED = "ended"
    """By itself."""
    LOST = "lost"
    """It was not heard of for too long."""
    UNKNOWN = "unknown"
    """No intent stands behind it, or none of a pool that the fleet keeps."""
    BUDGET = "budget"
    AT_MOST = "at-most"
    FAILED = "failed"
    """The provider could not."""


@dataclass(frozen=True, slots=True)
class FleetRecord:
    """One thing that was done about the fleet or held back, as it is kept."""

    id: str
    at: float
    action: FleetAction
    cause: FleetCause
    pool: str
    reason: str
    worker: WorkerId | None = None
    is_dry_run: bool = False
    controller: str = ""
    """Who led."""
    variant: VariantName | None = None
    """That was loaded."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    name: str
    hardware: str
    cores: int
    price_usd_per_hour: float
    """Of one worker."""
    min_workers: int
    max_workers: int
    ready: int
    starting: int
    draining: int
    ordered: int
    lost: int
    """That are not heard of, or have failed."""
    own: int
    """Of those there are, how many the fleet made."""


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """What the leader saw at its last look."""

    at: float
    controller: str
    provider: str
    is_dry_run: bool
    pools: tuple[PoolStatus, ...]
    demand_cores: float | None
    """Cores of work that come each second; None: not known now."""
    waiting_core_s: float
    wanted_cores: float | None
    there_cores: int
    spent_usd_per_hour: float
    max_usd_per_hour: float | None = None
