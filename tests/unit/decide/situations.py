"""Random situations for the brute-force comparison: a view, a loaded ledger, the same as plain tables for the oracle.

`compare` runs the real selection against the oracle over any catalogue; a release check runs it over the
demo's, dumped to JSON (see `test_brute_force`).
"""

from __future__ import annotations

import importlib.util
import random
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from infaas_controller.decide.candidates import Admissions
from infaas_controller.decide.policies.slo import SloPolicy
from infaas_controller.decide.select import select
from infaas_controller.lanes import URGENCIES, urgency_of
from infaas_controller.ledger import Ledger

from infaas.domain.cluster import ClusterView, InstanceRecord
from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.query import AccuracyConfidence, Choice, Objective, Priority
from infaas.domain.variant import AccuracySource, Variant, VariantState
from infaas.testing.builders import a_model, a_profile, a_query, a_task, a_variant, a_view, a_worker, an_accuracy

NOW = 1_000.0


def load_oracle() -> ModuleType:
    name = "decide_oracle"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("oracle.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


oracle = load_oracle()


def synthetic_catalogue(rng: random.Random, count: int = 175) -> ClusterView:
    """Tasks with models in several versions, some of which serve; ties, gaps and oddities among the variants."""
    tasks = [a_task(f"task-{n}") for n in range(4)] + [a_task("task-empty")]
    models = []
    for n in range(22):
        current = rng.choice([1, 1, 1, 1, 1, 2, 2, 2, 2, None]) if n else 1
        models.append(a_model(f"model-{n}", task=f"task-{n % 4}", current=current))
    variants = [_synthetic_variant(rng, n, models[n % 22].name, models[n % 22].task) for n in range(count)]
    return a_view(tasks=tasks, models=models, variants=variants)


def _synthetic_variant(rng: random.Random, n: int, model: str, task: str) -> Variant:
    accuracy = rng.choice(
        [
            None,
            *[an_accuracy(round(rng.uniform(0.6, 0.95), 2), margin=rng.choice([0.01, 0.03])) for _ in range(8)],
            an_accuracy(round(rng.uniform(0.8, 0.99), 2), margin=0.0, source=AccuracySource.DECLARED),
        ]
    )
    fixed = rng.choice([None] * 8 + [1, 4])
    max_batch = fixed or rng.choice([1, 8, 32])
    sizes = [size for size in (1, 2, 4, 8, 16, 32) if size <= max_batch]
    profile = a_profile(
        p95_ms=rng.choice([0.5, 1.0, 2.0, 5.0, 20.0, 80.0]) * rng.choice([1.0, 1.0, 1.3]),
        per_item_ms=rng.choice([0.05, 0.5, 2.0]),
        batches=[fixed] if fixed else sizes,
        accuracy=accuracy,
        cost=rng.choice([0.01, 0.02, 0.05, 0.1, 0.2, 0.5]),
        load_ms=rng.choice([20, 200, 2_000, 60_000]),
        memory_mib=rng.choice([10, 50, 200, 800, 5_000]),
    )
    return a_variant(
        f"variant-{n:03}", task=task, model=model, version=rng.choice([1, 1, 2]), threads=rng.choice([1, 1, 2, 4]),
        max_batch=max_batch, fixed_batch=fixed, profile=profile, has_profile=not rng.random() < 0.08,
        state=rng.choice([VariantState.READY] * 14 + [VariantState.DISABLED, VariantState.RETIRED]),
    ) if rng.random() > 0.08 else a_variant(
        f"variant-{n:03}", task=task, model=model, version=1, has_profile=False,
    )  # fmt: skip


def populate(rng: random.Random, catalogue: ClusterView, workers: int = 6) -> tuple[ClusterView, Ledger]:
    """Workers of every state with instances of every state, and promises of very different size on them."""
    view = catalogue
    names = list(catalogue.variants)
    how_many = rng.choice([0, 1, *[workers] * 8])
    for n in range(how_many):
        id = f"w{n}"
        instances = [
            InstanceRecord(f"i-{n}-{k}", rng.choice(names), WorkerId(id), rng.choice(_INSTANCE_STATES))  # type: ignore[arg-type]
            for k in range(rng.choice([0, 30, 60]))
        ]
        state = rng.choice([WorkerState.READY] * 5 + [WorkerState.DRAINING, WorkerState.STARTING])
        cores, memory = rng.choice([1, 2, 8]), rng.choice([100, 1_000, 4_000])
        record = a_worker(id, instances=instances, state=state, cores=cores, memory_mib=memory)
        view = view.with_worker(record)
    ledger = Ledger(0.00043)  # no sum of round figures: ties in floating point are not what is compared
    ledger.sync(view, NOW - 0.5)
    for lane in ledger.lanes.values():
        if lane.curve is None:
            continue
        busy = rng.random()
        if busy < 0.4:
            ledger.reserve(lane, rng.randrange(URGENCIES), rng.choice([1, 3, 40, 4_000]))
        if busy < 0.2 and lane.is_ready:
            ledger.sent(lane, rng.getrandbits(40), rng.randint(1, lane.curve.hard_limit), NOW - 0.001)
        if rng.random() < 0.2:
            run_s, hop_s = lane.curve.mean_s[1] * rng.choice([0.5, 3.0]), rng.choice([0.0001, 0.002])
            for _ in range(20):
                ledger.seen.ran(lane.curve, 1, run_s, NOW)
                lane.worker.hop.add(hop_s, NOW)
    return view, ledger


_INSTANCE_STATES = (
    [InstanceState.READY] * 6
    + [InstanceState.LOADING] * 2
    + [
        InstanceState.DRAINING,
        InstanceState.FAILED,
    ]
)


def random_ask(rng: random.Random, view: ClusterView) -> object:
    """Bounds are drawn around what exists, and often equal to it, so that comparisons at the edge are met."""
    costs = sorted({v.profile.cost_usd_per_1k for v in view.variants.values() if v.profile})
    scores = sorted({v.profile.accuracy.value for v in view.variants.values() if v.profile and v.profile.accuracy})
    kind = rng.random()
    if kind < 0.65:
        handle: str = rng.choice(list(view.tasks))
    elif kind < 0.85:
        handle = rng.choice(list(view.models))
    elif kind < 0.98:
        handle = rng.choice(list(view.variants))
    else:
        handle = "no-such-thing"
    return oracle.Ask(
        handle=handle,
        version=rng.choice([None] * 20 + [1, 2, 9]),
        items=rng.choice([*[1] * 12, 4, 4, 7, 16, 33]),
        latency_s=rng.choice([None, None, 0.0001, 0.002, 0.01, 0.03, 0.1, 0.1, 0.5, 0.5, 5.0]),
        floor=rng.choice([None, None, 0.0, 0.0, 0.0, rng.choice(scores or [0.5]), round(rng.uniform(0.5, 1.0), 3)]),
        cap=rng.choice([None, None, None, None, rng.choice(costs or [0.1]), rng.uniform(0, 0.6)]),
        objective=rng.choice(["cost", "cost", "accuracy", "latency"]),
        fallback=rng.random() < 0.3,
        lower95=rng.random() < 0.25,
    )


class _Cold(dict[tuple[str, str], float]):
    """Predictions with loading, made when the oracle asks for one: there are variants times workers of them."""

    def __init__(self, view: ClusterView, ledger: Ledger, items: int, now: float) -> None:
        super().__init__()
        self._given = (view, ledger, items, now)

    def __missing__(self, key: tuple[str, str]) -> float:
        view, ledger, items, now = self._given
        variant, deck = view.variants[VariantName(key[0])], ledger.decks[WorkerId(key[1])]
        self[key] = ledger.predict_cold(variant, deck, items, now) - now
        return self[key]


def tables(view: ClusterView, ledger: Ledger, items: int, urgency: int, now: float) -> object:
    """The ledger's numbers, as the oracle's data."""
    world = oracle.World(
        tasks=set(view.tasks),
        models={m.name: (m.task, m.current) for m in view.models.values()},
        variants=list(view.variants.values()),
        cold=_Cold(view, ledger, items, now),
        overhead_s=ledger.least_overhead_s,
    )
    for worker in view.workers.values():
        if worker.state is not WorkerState.READY:
            continue
        deck = ledger.decks[worker.id]
        world.utilisation[worker.id] = deck.utilisation(now)
        world.free_bytes[worker.id] = worker.memory_bytes - deck.held_bytes()
        world.cores[worker.id] = worker.cores
        for instance in worker.instances.values():
            if instance.state not in (InstanceState.READY, InstanceState.LOADING):
                continue
            lane, variant = ledger.lanes[instance.id], view.variants[instance.variant]
            if variant.profile is not None and items <= (variant.fixed_batch or variant.max_batch_size):
                at = ledger.predict(lane, urgency, items, now) - now
                row = (at, instance.id, worker.id, instance.state is InstanceState.READY)
                world.live.setdefault(instance.variant, []).append(row)
    return world


def compare(catalogue: ClusterView, *, sets: int, seed: int, per_situation: int = 20) -> tuple[list[str], Counter[str]]:
    """Differences between selection and oracle over random requirement sets, and how often each outcome came."""
    rng = random.Random(seed)
    differences: list[str] = []
    outcomes: Counter[str] = Counter()
    policy = SloPolicy()
    for number in range(sets):
        if number % per_situation == 0:
            view, ledger = populate(rng, catalogue)
            admissions = Admissions()
        ask = random_ask(rng, view)
        priority = rng.choice(list(Priority))
        query = a_query(
            ask.handle, version=ask.version, at=NOW, accuracy_min=ask.floor, max_cost=ask.cap, fallback=ask.fallback,
            objective=Objective(ask.objective), priority=priority,
            latency_ms=None if ask.latency_s is None else ask.latency_s * 1e3,
        )  # fmt: skip
        confidence = AccuracyConfidence.LOWER95 if ask.lower95 else AccuracyConfidence.POINT
        deadline = NOW + (30.0 if ask.latency_s is None else ask.latency_s)
        wanted = replace(query.requirements, accuracy_confidence=confidence, latency_s=ask.latency_s)
        query = query._replace(items=ask.items, requirements=wanted, deadline=deadline)
        expected = oracle.answer(tables(view, ledger, ask.items, urgency_of(wanted), NOW), ask)
        found = select(query, admissions.of(query, view), ledger, policy, NOW, rng.random())
        if isinstance(found, Choice):
            got = oracle.Verdict("choice", found.variant, found.instance, found.worker, found.fallback is not None)
            check_never_below(view.variants[found.variant], ask, found)
        else:
            got = oracle.Verdict(found.code.value)
        outcomes[got.code + ("+fallback" if got.is_fallback else "")] += 1
        if got.code == "choice" and got.instance is None:
            outcomes["cold"] += 1
        if got != expected:
            differences.append(f"set {number}: {ask}\n  expected {expected}\n  got      {got} ({found.reason})")
    return differences, outcomes


def check_never_below(variant: Variant, ask: object, found: Choice) -> None:
    """Whatever else: a floor that the caller stated is kept unless the answer is labelled, and a cap always."""
    assert variant.profile is not None
    if ask.cap is not None:
        assert variant.profile.cost_usd_per_1k <= ask.cap
    if ask.floor and found.fallback is None:
        accuracy = variant.profile.accuracy
        assert accuracy is not None
        assert (accuracy.low if ask.lower95 else accuracy.value) >= ask.floor


def catalogue_of(tasks: Sequence[object], models: Sequence[object], variants: Sequence[Variant]) -> ClusterView:
    return ClusterView(
        tasks={t.name: t for t in tasks},
        models={m.name: m for m in models},
        variants={VariantName(v.name): v for v in variants},
        version=1,
    )
