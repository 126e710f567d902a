"""Why no admitted variant can serve a query now: which bound holds it, which variant comes nearest, what would help.

The order is SURFACE §3's: what could never be met is 422; no worker is 503; a variant that is up but too busy is 429
with the time to come back; one that is not loaded is 503 and names what to load.
"""

from __future__ import annotations

from collections.abc import Sequence

from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.query import Code, Refusal
from infaas.domain.variant import Variant
from infaas_controller.decide.candidates import best_latency_s
from infaas_controller.decide.options import Situation
from infaas_controller.lanes import Lane
from infaas_controller.lines import named

RETRY_BOUNDS_S = (0.05, 30.0)
RELIEF = 4 / 3
"""So much more must a variant do with a core in a second, to be loaded because those that serve are too busy."""
NO_WORKER_RETRY_S = 1.0


def refuse(situation: Situation, variants: Sequence[Variant] | None = None) -> Refusal:
    """For a query whose admission is not empty and whose deadline no option meets. `variants`: those that the policy
    would have taken, when these are not all that are admitted."""
    ledger, query = situation.ledger, situation.query
    variants = situation.admission.variants if variants is None else variants
    budget_s = query.deadline - query.arrived_at
    overhead_s = ledger.least_overhead_s
    able = [v for v in variants if best_latency_s(v, query.items) + overhead_s <= budget_s]
    if not able:
        nearest = min(variants, key=lambda v: (best_latency_s(v, query.items), v.name))
        need_ms = (best_latency_s(nearest, query.items) + overhead_s) * 1e3
        return Refusal(
            Code.SLO_UNSATISFIABLE,
            f"latency: {budget_s * 1e3:.3g} ms is less than any variant within floor and cap can do; "
            f"the nearest is {nearest.name} with {need_ms:.3g} ms (p95 of {query.items} item(s) and overhead)",
        )
    if not any(True for _ in ledger.ready_decks()):
        return Refusal(Code.NO_WORKER, f"none of {len(ledger.decks)} known worker(s) is READY", NO_WORKER_RETRY_S)
    ready = [lane for v in able for lane in ledger.lanes_of(v.name) if situation.can_use(lane) and lane.is_ready]
    if ready:
        return _overloaded(situation, able, ready)
    late = [lane for v in able for lane in ledger.lanes_of(v.name) if lane.id in situation.late_at and lane.is_ready]
    if late:
        return _outrun(situation, late[0])
    return _not_loaded(situation, able)


def _overloaded(situation: Situation, able: Sequence[Variant], ready: list[Lane]) -> Refusal:
    ledger, query, now = situation.ledger, situation.query, situation.now
    part = situation.part
    at, name = min(
        (ledger.predict(lane, situation.urgency, query.items, now, part), lane.variant) for lane in ready
    )  # fmt: skip
    late_s = at - query.deadline
    return Refusal(
        Code.DEADLINE_UNREACHABLE,
        f"at the present load{_in_share(situation)} the earliest answer ({name}) is predicted in "
        f"{(at - now) * 1e3:.4g} ms; "
        f"{(query.deadline - now) * 1e3:.4g} ms are left",
        _bounded(late_s),
        load=_relief(situation, able, ready),
    )


def _relief(situation: Situation, able: Sequence[Variant], ready: list[Lane]) -> tuple[VariantName, WorkerId] | None:
    """A variant that would do clearly more than those that serve, and a worker that exchanges variants and has room
    for it. One at a time. Which of them stays is that worker's question; waiting until it sees the load would cost
    the queries of some seconds."""
    ledger, now = situation.ledger, situation.now
    places = ledger.places_beside(situation.admission.key, now)
    if not places:
        return None
    lanes = {v.name: [lane for lane in ledger.lanes_of(v.name) if lane.is_usable] for v in able}
    if any(not lane.is_ready for found in lanes.values() for lane in found):
        return None
    best = max([_per_core(lane.curve.variant) for lane in ready if lane.curve is not None], default=0.0)
    for variant in sorted(able, key=lambda one: (-_per_core(one), one.name)):
        if _per_core(variant) < RELIEF * best:
            return None
        wanted = situation.as_loaded(variant)
        for deck, free_bytes in () if lanes[variant.name] else places:
            fits = wanted.threads <= deck.record.cores and wanted.memory_bytes <= free_bytes
            if fits and ledger.failed_load(variant.name, deck.id, now) is None:
                return variant.name, deck.id
    return None


def _per_core(variant: Variant) -> float:
    """Items per second, at best."""
    return variant.profile.throughput_per_s / variant.threads if variant.profile is not None else 0.0


def _in_share(situation: Situation) -> str:
    if situation.part is None:
        return ""
    return f", within the share of tenant {named(situation.query.requirements.tenant)!r},"


def _outrun(situation: Situation, lane: Lane) -> Refusal:
    """It was let in, and what ran before it took longer than was predicted then."""
    left_s = situation.query.deadline - situation.now
    return Refusal(
        Code.DEADLINE_UNREACHABLE,
        f"the work ahead of it at {lane.variant} took longer than predicted; "
        f"the {left_s * 1e3:.4g} ms that are left are too few to run it",
        _bounded(lane.free_at(situation.now) - situation.now),
    )


def _not_loaded(situation: Situation, able: list[Variant]) -> Refusal:
    """The most preferred variant that is loading or could be loaded; `load` is empty if it is on its way already."""
    ledger, now = situation.ledger, situation.now
    for variant in able:
        loading = [lane for lane in ledger.lanes_of(variant.name) if situation.can_use(lane)]
        if loading:
            wait_s = min(lane.free_at(now) for lane in loading) - now
            return Refusal(
                Code.LOADING, f"{variant.name} is loading, about {wait_s * 1e3:.4g} ms more", _bounded(wait_s)
            )
        deck = ledger.place_for(situation.as_loaded(variant), now, insists=situation.insists)
        if deck is not None and variant.profile is not None:
            is_warm = variant.name in deck.loaded
            wait_s = variant.profile.warm_load_s if is_warm else variant.profile.cold_load_s
            return Refusal(
                Code.LOADING,
                f"{variant.name} is not loaded and loading takes about {wait_s * 1e3:.4g} ms; "
                f"it is being loaded on {deck.id}",
                _bounded(wait_s),
                load=(variant.name, deck.id),
            )
    if any(lane.is_usable and lane.id in situation.excluded for v in able for lane in ledger.lanes_of(v.name)):
        text = "every instance that could answer in time has just failed this query"
        return Refusal(Code.UNAVAILABLE, text, NO_WORKER_RETRY_S)
    failed = [
        f"{variant.name} on {deck.id}: {reason}"
        for variant in able
        for deck in ledger.ready_decks()
        if (reason := ledger.failed_load(variant.name, deck.id, now)) is not None
    ]
    why = f"loads failed lately ({'; '.join(failed[:3])})" if failed else "none has the memory or cores for it"
    names = ", ".join(v.name for v in able[:3])
    return Refusal(Code.NO_WORKER, f"no READY worker can load {names}: {why}", NO_WORKER_RETRY_S)


def _bounded(seconds: float) -> float:
    low, high = RETRY_BOUNDS_S
    return min(high, max(low, seconds))
