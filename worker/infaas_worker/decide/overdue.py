"""What hangs: runs and loads that have taken longer than `hang` gives them, not counting what this process was paused.

What becomes of them, and of a process in which nothing can end them, is `advance`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from infaas.domain.ids import InstanceId
from infaas.domain.lifecycle import InstanceState
from infaas_worker.decide.events import LoadAsked
from infaas_worker.decide.hang import Patience, bound_s, load_bound_s, stretched_s
from infaas_worker.decide.instances import Instance, WorkKind
from infaas_worker.decide.serving import Work


def hung_runs(
    held: Iterable[Work], patience: Patience, stall_ratio: float, now: float
) -> tuple[tuple[InstanceId, str], ...]:
    """Instances with a run that hangs, each with the reason. Of a run that is shared every member says so."""
    found = []
    for work in held:
        if work.started_at is None:
            continue
        ran_s = now - work.started_at - work.excused_s
        given_s = bound_s(work.slow_s, stall_ratio, patience, is_first=work.kind is WorkKind.WARM_UP)
        if ran_s > given_s:
            found.append((work.instance, f"hung for {ran_s:.1f} s, a run of it is given {given_s:.1f} s"))
    return tuple(found)


def hung_loads(
    instances: Iterable[Instance],
    asked: Mapping[InstanceId, LoadAsked],
    patience: Patience,
    stall_ratio: float,
    now: float,
) -> tuple[tuple[InstanceId, str], ...]:
    """Instances whose load hangs, where this process waits for it, each with the reason."""
    found = []
    for one in instances:
        if one.loading_since is None or one.state not in (InstanceState.LOADING, InstanceState.DRAINING):
            continue
        took_s = now - one.loading_since - one.load_excused_s
        given_s = stretched_s(load_bound_s(asked[one.id].load_s, patience), stall_ratio)
        if took_s > given_s:
            found.append((one.id, f"hung for {took_s:.1f} s while loading, which is given {given_s:.1f} s"))
    return tuple(found)


def excused_runs(held: Iterable[Work], paused_s: float, now: float) -> dict[int, Work]:
    """What runs, by key, none of it blamed for a pause of this process."""
    return {
        work.key: replace(work, excused_s=min(work.excused_s + paused_s, now - work.started_at))
        for work in held
        if work.started_at is not None
    }


def excused_loads(instances: Iterable[Instance], paused_s: float, now: float) -> dict[InstanceId, Instance]:
    """What is being loaded, none of it blamed for a pause of this process."""
    return {
        one.id: replace(one, load_excused_s=min(one.load_excused_s + paused_s, now - one.loading_since))
        for one in instances
        if one.loading_since is not None
    }
