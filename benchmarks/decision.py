"""How long a decision takes, alone and in a batch, by the size of the cluster.

    python benchmarks/decision.py [--rounds 2000]

"alone" is one selection (admission looked up, options compared, nothing reserved). "arrival" is all of it: select,
reserve, queue. "of 16" is arrival, batch forming and answer of 16 like queries that come in one turn of the loop, per
query, without tensors and sockets. Best of five rounds, because the host steals time.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from infaas_controller.commands import BatchResult, SendBatch
from infaas_controller.decide.candidates import Admissions
from infaas_controller.decide.policies.slo import SloPolicy
from infaas_controller.decide.select import select_traced
from infaas_controller.engine import Engine
from infaas_controller.ledger import Ledger
from infaas_controller.placing import EngineSettings
from infaas_controller.policies import installed_policies
from infaas_controller.room import Bounds

from infaas.domain.cluster import ClusterView, InstanceRecord
from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import Objective, Query
from infaas.testing.builders import a_query, a_variant, a_view, a_worker

NOW = 1_000.0
VARIANTS_PER_TASK = 50
BEST_OF = 5
SIZES = (10, 100, 1_000, 5_000, 10_000)


@dataclass(frozen=True)
class Row:
    instances: int
    variants: int
    workers: int
    alone_us: dict[str, float]
    arrival_us: float
    amortised_us: float
    view_change_us: float


def a_cluster(instances: int, rng: random.Random) -> ClusterView:
    """Up to 1,000 variants of 20 tasks, up to 100 instances a worker, spread evenly."""
    count = max(10, min(1_000, instances))
    variants = [
        a_variant(
            f"v{n:04}", task=f"task-{n // VARIANTS_PER_TASK}", model=f"model-{n // 10}",
            p95_ms=rng.uniform(0.5, 20), per_item_ms=0.2, accuracy=round(rng.uniform(0.8, 0.95), 3),
            cost=round(rng.uniform(0.01, 0.5), 3),
        )
        for n in range(count)
    ]  # fmt: skip
    workers = []
    for w in range(max(1, instances // 50)):
        mine = [
            InstanceRecord(InstanceId(f"i{k}"), VariantName(f"v{k % count:04}"), WorkerId(f"w{w}"), InstanceState.READY)
            for k in range(w * 50, min(instances, (w + 1) * 50))
        ]
        workers.append(a_worker(f"w{w}", instances=mine, cores=64))
    return a_view(variants=variants, workers=workers)


def best_us(call: Callable[[], object], rounds: int) -> float:
    """Microseconds per call, the best of several rounds."""
    best = float("inf")
    for _ in range(BEST_OF):
        begun = time.perf_counter()
        for _ in range(rounds):
            call()
        best = min(best, (time.perf_counter() - begun) / rounds)
    return best * 1e6


def measure(instances: int, rounds: int) -> Row:
    rng = random.Random(instances)
    view = a_cluster(instances, rng)
    ledger, admissions, policy = Ledger(), Admissions(), SloPolicy()
    ledger.sync(view, NOW)
    for lane in ledger.lanes.values():
        if rng.random() < 0.3:
            ledger.reserve(lane, 2, rng.randint(1, 20))
    alone: dict[str, float] = {}
    for objective in Objective:
        query = a_query("task-0", at=NOW, latency_ms=100, objective=objective, accuracy_min=0.85)

        def once(query: Query = query) -> object:
            return select_traced(query, admissions.of(query, view), ledger, policy, NOW, 0.5)

        alone[objective.value] = best_us(once, rounds)
    engine = an_engine(view)
    arrival_us = best_us(lambda: engine.arrive(a_typical_query(), None, NOW), rounds // 4)
    engine = an_engine(view)
    amortised_us = best_us(lambda: sixteen(engine), rounds // 8) / 16
    flip = itertools.cycle([view.with_worker(a_worker("w0", instances=(), cores=n)) for n in (63, 64)])
    change_us = best_us(lambda: ledger.sync(next(flip), NOW), 50)
    return Row(instances, len(view.variants), len(view.workers), alone, arrival_us, amortised_us, change_us)


def an_engine(view: ClusterView) -> Engine:
    numbers = itertools.count()
    engine = Engine(EngineSettings(
        installed_policies(), "slo", bounds=Bounds(10**9, 10**9, 10**12), draw=random.Random(1).random,
        fresh_instance=lambda: InstanceId(f"made-{next(numbers)}"),
    ))  # fmt: skip
    engine.view_changed(view, NOW)
    engine.flush(NOW)
    engine.commands.clear()
    return engine


_TYPICAL = a_query("task-0", at=NOW, latency_ms=10_000_000, accuracy_min=0.85)


def a_typical_query() -> Query:
    return _TYPICAL


def sixteen(engine: Engine) -> None:
    for _ in range(16):
        engine.arrive(_TYPICAL, None, NOW)
    while engine.live:
        engine.flush(NOW)
        while engine.commands:
            command = engine.commands.popleft()
            if isinstance(command, SendBatch):
                outputs: dict[int, object] = {ticket.number: None for ticket in command.tickets}
                engine.done(command.number, BatchResult(run_s=0.001, outputs=outputs), NOW)
    engine.commands.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2_000)
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES)
    given = parser.parse_args()
    print("| instances | variants | workers | cost µs | accuracy µs | latency µs | arrival µs | of 16 µs | change µs |")
    print("|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
    for size in given.sizes:
        row = measure(size, given.rounds)
        alone = " | ".join(f"{row.alone_us[objective.value]:.1f}" for objective in Objective)
        print(
            f"| {row.instances} | {row.variants} | {row.workers} | {alone} | {row.arrival_us:.1f} | "
            f"{row.amortised_us:.1f} | {row.view_change_us:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
