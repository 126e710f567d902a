"""The lives of instances and workers, as one transition table each.

Status fields change only along these arrows; anything else is an error in the caller, not a state.
"""

from __future__ import annotations

from enum import Enum, StrEnum


class InstanceState(StrEnum):
    """LOADING reads and warms up; READY takes batches; DRAINING finishes what it has; FAILED says why and is gone."""

    LOADING = "LOADING"
    READY = "READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"
    GONE = "GONE"


class Death(StrEnum):
    """How an instance ended that did not end by itself: its process was lost, or it never answered."""

    CRASHED = "crashed"
    HUNG = "hung"


class WorkerState(StrEnum):
    """FAILED: something in its own process hangs that cannot be stopped; it takes nothing more, finishes the rest and
    is replaced."""

    STARTING = "STARTING"
    READY = "READY"
    DRAINING = "DRAINING"
    FAILED = "FAILED"
    GONE = "GONE"


INSTANCE_TRANSITIONS: dict[InstanceState, frozenset[InstanceState]] = {
    InstanceState.LOADING: frozenset({InstanceState.READY, InstanceState.FAILED, InstanceState.DRAINING}),
    InstanceState.READY: frozenset({InstanceState.DRAINING, InstanceState.FAILED}),
    InstanceState.DRAINING: frozenset({InstanceState.GONE, InstanceState.FAILED}),
    InstanceState.FAILED: frozenset({InstanceState.GONE}),
    InstanceState.GONE: frozenset(),
}

WORKER_TRANSITIONS: dict[WorkerState, frozenset[WorkerState]] = {
    WorkerState.STARTING: frozenset({WorkerState.READY, WorkerState.GONE}),
    WorkerState.READY: frozenset({WorkerState.DRAINING, WorkerState.FAILED, WorkerState.GONE}),
    WorkerState.DRAINING: frozenset({WorkerState.READY, WorkerState.FAILED, WorkerState.GONE}),
    WorkerState.FAILED: frozenset({WorkerState.GONE}),
    WorkerState.GONE: frozenset(),
}


class BuildState(StrEnum):
    """A version's way from upload to serving."""

    RECEIVED = "RECEIVED"
    BUILDING = "BUILDING"
    READY = "READY"
    FAILED = "FAILED"
    RETIRED = "RETIRED"


BUILD_TRANSITIONS: dict[BuildState, frozenset[BuildState]] = {
    BuildState.RECEIVED: frozenset({BuildState.BUILDING, BuildState.FAILED, BuildState.RETIRED}),
    BuildState.BUILDING: frozenset({BuildState.RECEIVED, BuildState.READY, BuildState.FAILED, BuildState.RETIRED}),
    BuildState.READY: frozenset({BuildState.RETIRED}),
    BuildState.FAILED: frozenset({BuildState.RECEIVED, BuildState.RETIRED}),
    BuildState.RETIRED: frozenset({BuildState.READY, BuildState.RECEIVED}),
}


def is_allowed(before: Enum, after: Enum) -> bool:
    """Whether the table of `before`'s kind has the arrow."""
    if isinstance(before, InstanceState):
        return after in INSTANCE_TRANSITIONS[before]
    if isinstance(before, WorkerState):
        return after in WORKER_TRANSITIONS[before]
    if isinstance(before, BuildState):
        return after in BUILD_TRANSITIONS[before]
    raise TypeError(f"no transition table for {type(before).__name__}")
