"""What selection must answer, worked out again in numpy from the written rules alone (SURFACE §2 and §3).

Nothing of `infaas_controller.decide` is imported. Predicted completions, utilisations and free memory are given; who is
eligible, what the objective prefers, how ties fall and which refusal applies is decided here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from infaas.domain.variant import Variant

NEVER = np.inf


@dataclass(frozen=True)
class Ask:
    handle: str
    version: int | None = None
    items: int = 1
    latency_s: float | None = None
    floor: float | None = None
    cap: float | None = None
    objective: str = "cost"
    fallback: bool = False
    lower95: bool = False


@dataclass
class World:
    """The situation as plain tables. Times count from the moment of the decision."""

    tasks: set[str]
    models: dict[str, tuple[str, int | None]]
    """Name: task and current version."""
    variants: Sequence[Variant]
    live: dict[str, list[tuple[float, str, str, bool]]] = field(default_factory=dict)
    """Variant: (predicted seconds, instance, worker, is READY) of READY and LOADING instances on READY workers."""
    cold: dict[tuple[str, str], float] = field(default_factory=dict)
    """(variant, worker): predicted seconds with loading, on READY workers."""
    utilisation: dict[str, float] = field(default_factory=dict)
    """READY workers only."""
    free_bytes: dict[str, int] = field(default_factory=dict)
    cores: dict[str, int] = field(default_factory=dict)
    overhead_s: float = 0.0
    """The least that any READY worker adds."""


@dataclass(frozen=True)
class Verdict:
    code: str
    """`choice`, or the slug of the refusal."""
    variant: str | None = None
    instance: str | None = None
    worker: str | None = None
    is_fallback: bool = False


def answer(world: World, ask: Ask) -> Verdict:
    named = _named(world, ask)
    if isinstance(named, Verdict):
        return named
    servable = [v for v in named if v.state.value == "READY" and v.profile is not None]
    if not servable:
        return Verdict("unavailable")
    floor = ask.floor if ask.floor is not None else _default_floor(servable, ask.lower95)
    score = np.array([_score(v, ask.lower95) for v in servable])
    cost = np.array([v.profile.cost_usd_per_1k for v in servable])
    fits = np.array([ask.items == v.fixed_batch if v.fixed_batch else ask.items <= v.max_batch_size for v in servable])
    if not fits.any():
        return Verdict("invalid-argument")
    affordable = fits & (cost <= (np.inf if ask.cap is None else ask.cap))
    good = affordable & ((score >= floor) if floor > 0 else True)
    limit_s = 30.0 if ask.latency_s is None else ask.latency_s
    chosen = _pick(world, [v for v, ok in zip(servable, good, strict=True) if ok], ask, limit_s, ask.objective)
    if chosen is not None:
        return chosen
    code = _refusal(world, [v for v, ok in zip(servable, good, strict=True) if ok], ask, limit_s)
    if ask.fallback and affordable.any():
        relaxed = [v for v, ok in zip(servable, affordable, strict=True) if ok]
        lower = _pick(world, relaxed, ask, limit_s, "accuracy")
        if lower is not None:
            return Verdict("choice", lower.variant, lower.instance, lower.worker, is_fallback=True)
    return Verdict(code)


def _named(world: World, ask: Ask) -> list[Variant] | Verdict:
    by_name = {v.name: v for v in world.variants}
    if ask.handle in world.tasks:
        models = {name for name, (task, _) in world.models.items() if task == ask.handle}
    elif ask.handle in world.models:
        models = {ask.handle}
    elif ask.handle in by_name:
        one = by_name[ask.handle]
        return [one] if ask.version in (None, one.version) else Verdict("not-found")
    else:
        return Verdict("not-found")
    found = [
        v
        for v in world.variants
        if v.model in models and v.version == (world.models[v.model][1] if ask.version is None else ask.version)
    ]
    if found:
        return found
    return Verdict("not-found" if ask.version is not None else "unavailable")


def _default_floor(servable: list[Variant], lower95: bool) -> float:
    """Best measured accuracy minus 0.02; without any measured one there is no floor."""
    measured = [
        _score(v, lower95) for v in servable if v.profile.accuracy and v.profile.accuracy.source.value == "measured"
    ]
    return max(0.0, max(measured) - 0.02) if measured else 0.0


def _score(variant: Variant, lower95: bool) -> float:
    accuracy = variant.profile.accuracy
    if accuracy is None:
        return -np.inf
    return accuracy.low if lower95 else accuracy.value


def _p95(variant: Variant, items: int) -> float:
    points = variant.profile.latency
    return float(np.interp(items, [p.batch for p in points], [p.p95_s for p in points]))


def _place(world: World, variant: Variant, limit_s: float) -> tuple[float, str | None, str] | None:
    """Where a variant would answer first: an instance; or, when none of them would in time, the least utilised READY
    worker without one that has memory and cores for it."""
    live = sorted(world.live.get(variant.name, []))
    if live and live[0][0] <= limit_s:
        return live[0][0], live[0][1], live[0][2]
    taken = {worker for _, _, worker, _ in live}
    free = [
        (used, worker)
        for worker, used in world.utilisation.items()
        if worker not in taken
        and world.free_bytes[worker] >= variant.profile.resident_memory_bytes
        and world.cores[worker] >= variant.threads
    ]
    if not free:
        return None
    worker = min(free)[1]
    return world.cold[variant.name, worker], None, worker


def _pick(world: World, variants: list[Variant], ask: Ask, limit_s: float, objective: str) -> Verdict | None:
    if not variants:
        return None
    places = [_place(world, v, limit_s) for v in variants]
    at = np.array([NEVER if place is None else place[0] for place in places])
    cost = np.array([v.profile.cost_usd_per_1k for v in variants])
    accuracy = np.array([v.profile.accuracy.value if v.profile.accuracy else -1.0 for v in variants])
    names = np.array([v.name for v in variants])
    first = {"cost": cost, "accuracy": -accuracy, "latency": np.zeros(len(variants))}[objective]
    for index in np.lexsort((names, at, first)):
        if at[index] <= limit_s:
            place = places[index]
            return Verdict("choice", str(names[index]), place[1], place[2])
    return None


def _refusal(world: World, variants: list[Variant], ask: Ask, limit_s: float) -> str:
    able = [v for v in variants if _p95(v, ask.items) + world.overhead_s <= limit_s]
    if not able:
        return "slo-unsatisfiable"
    if not world.utilisation:
        return "no-worker"
    if any(is_ready for v in able for *_, is_ready in world.live.get(v.name, [])):
        return "deadline-unreachable"
    for variant in able:
        if world.live.get(variant.name):
            return "loading"
        if any(
            world.free_bytes[w] >= variant.profile.resident_memory_bytes and world.cores[w] >= variant.threads
            for w in world.utilisation
        ):
            return "loading"
    return "no-worker"
