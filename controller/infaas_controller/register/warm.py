"""Which variant to load before a version serves, and whether it is warm: the rule behind "warm before switch".

Pure. What is loaded is what a query that states nothing would be given, so that the first such query after a switch
is no slower than the last one before it.
"""

from __future__ import annotations

from collections.abc import Sequence

from infaas.domain.cluster import ClusterView
from infaas.domain.ids import VariantName
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.query import DEFAULT_FLOOR_MARGIN, Objective
from infaas.domain.task import Task
from infaas.domain.variant import AccuracySource, Profile, Variant, VariantState


def preference(task: Task, variants: Sequence[Variant]) -> list[VariantName]:
    """A version's variants in the order in which queries with the task's default requirements would want them.

    Those that meet the defaults come first, by the objective; the others follow as a last resort, most accurate first.
    Variants without a profile are never wanted.
    """
    able = [(v, v.profile) for v in variants if v.state is VariantState.READY and v.profile is not None]
    measured = [a.value for _, p in able if (a := p.accuracy) is not None and a.source is AccuracySource.MEASURED]
    floor = task.defaults.slo_accuracy_min
    if floor is None:
        floor = max(measured) - DEFAULT_FLOOR_MARGIN if measured else 0.0
    objective = task.defaults.objective or Objective.COST

    def key(entry: tuple[Variant, Profile]) -> tuple[bool, float, float, str]:
        variant, profile = entry
        is_met = _is_met(task, profile, floor)
        first = _worth(profile, objective) if is_met else -_accuracy(profile)
        return not is_met, first, profile.latency_s(1), variant.name

    return [variant.name for variant, _ in sorted(able, key=key)]


def _is_met(task: Task, profile: Profile, floor: float) -> bool:
    defaults = task.defaults
    is_accurate = floor <= 0 or (profile.accuracy is not None and profile.accuracy.value >= floor)
    is_fast = defaults.slo_latency_ms is None or profile.latency_s(1) * 1e3 <= defaults.slo_latency_ms
    is_cheap = defaults.max_cost is None or profile.cost_usd_per_1k <= defaults.max_cost
    return is_accurate and is_fast and is_cheap


def _worth(profile: Profile, objective: Objective) -> float:
    """Less is better."""
    if objective is Objective.ACCURACY:
        return -_accuracy(profile)
    return profile.cost_usd_per_1k if objective is Objective.COST else profile.latency_s(1)


def _accuracy(profile: Profile) -> float:
    return profile.accuracy.value if profile.accuracy is not None else 0.0


def instance_states(view: ClusterView, variant: VariantName) -> list[tuple[InstanceState, str]]:
    """State and reason of every instance of a variant on workers that serve."""
    return [
        (instance.state, instance.reason)
        for worker in view.workers.values()
        if worker.state is WorkerState.READY
        for instance in worker.instances.values()
        if instance.variant == variant
    ]


def is_warm(view: ClusterView, variant: VariantName) -> bool:
    return any(state is InstanceState.READY for state, _ in instance_states(view, variant))


def is_coming(view: ClusterView, variant: VariantName) -> bool:
    return any(state is InstanceState.LOADING for state, _ in instance_states(view, variant))
