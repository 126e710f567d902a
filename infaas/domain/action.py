"""Scaling steps: what an autoscaler did, or would not do, and why. Kept for people, and counted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from infaas.domain.ids import InstanceId, VariantName


class Action(StrEnum):
    """HOLD: more was called for and something stands against it."""

    REPLICATE = "replicate"
    UPGRADE = "upgrade"
    """Another variant that does more in a second takes over."""
    DOWNGRADE = "downgrade"
    """Another variant that does less in a second, and takes less, takes over."""
    UNLOAD = "unload"
    HOLD = "hold"


class Cause(StrEnum):
    """A closed set, for metrics; a step's reason has the figures."""

    BUSY = "busy"
    """Its instances run most of the time."""
    QUIET = "quiet"
    """One instance less would have enough to spare."""
    UNUSED = "unused"
    """Nobody has asked for it for long."""
    CHEAPER = "cheaper"
    """Another variant carries the same load for clearly less of the worker."""
    REPLACED = "replaced"
    """Another variant has taken over what it did."""
    LENT = "lent"
    """Its cores are asked for by somebody who borrows some, such as the profiler."""
    NO_CORES = "no-cores"
    NO_MEMORY = "no-memory"
    AT_MOST = "at-most"
    """There are as many as may be."""
    FAILED = "failed"
    """One of its instances has, just now."""


@dataclass(frozen=True, slots=True)
class ScalingStep:
    """One thing that a worker's model autoscaler did or held back."""

    id: str
    """Unique, so that who hears of it twice knows."""
    at: float
    """Wall clock, seconds since the epoch."""
    action: Action
    cause: Cause
    variant: VariantName
    reason: str
    replicas: int
    """Of the variant on this worker, before."""
    instance: InstanceId | None = None
    """That is loaded or unloaded."""


@dataclass(frozen=True, slots=True)
class VariantUse:
    """How much of what its instances could do is used, as their worker sees it."""

    variant: VariantName
    replicas: int
    """READY ones."""
    loading: int
    busy: float
    """Instances that are running, on average lately."""


@dataclass(frozen=True, slots=True)
class Autoscaling:
    """What a worker says of its model autoscaler."""

    is_on: bool
    uses: tuple[VariantUse, ...] = ()
    steps: tuple[ScalingStep, ...] = ()
    """The newest, oldest first."""
    given_up: tuple[VariantName, ...] = ()
    """Not to be loaded here as long as what took over from them is on time."""
    exchanges: bool = False
    """Whether it has a use for being told what queries admit."""
