"""A query service that really computes: the `simple` model (sum and difference) and an `echo` task, with numpy.

It stands in for the dispatcher in tests of the edges: it keeps decisions, counts, loads and unloads in its own view,
and refuses by the same errors, so that everything the edges say about a query has a source.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from infaas_controller.ports import Answer, Outcome, QueryFailedError, VariantStats, Waiter

from infaas.domain.cluster import ClusterView
from infaas.domain.ids import DecisionId, InstanceId, TaskName, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import Code, Decision, Query
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, Tensor, TensorSpec
from infaas.domain.variant import Variant
from infaas.errors import InfaasError, ModelError, NotFoundError, RefusedError, UnavailableError
from infaas.rpc.tensors import as_array
from infaas.testing.builders import a_task, a_variant, a_view, a_worker, an_instance

SIMPLE_INPUTS = (TensorSpec("INPUT0", Datatype.INT32, (-1, 16)), TensorSpec("INPUT1", Datatype.INT32, (-1, 16)))
SIMPLE_OUTPUTS = (TensorSpec("OUTPUT0", Datatype.INT32, (-1, 16)), TensorSpec("OUTPUT1", Datatype.INT32, (-1, 16)))
SCORES = TensorSpec("scores", Datatype.FP32, (-1, 4))
ECHOED = tuple(TensorSpec(f"in_{d.value.lower()}", d, (-1, -1)) for d in Datatype)
ECHO_TASKS = {f"echo-{spec.datatype.value.lower()}": spec for spec in ECHOED}


def simple_view() -> ClusterView:
    """`simple` (task `simple-task`) ready on a worker, one echo task per datatype, a classifier `rank`."""
    variants: list[Variant] = []
    tasks: list[Task] = []

    def add(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        tasks.append(a_task(f"{name}-task", inputs=inputs, outputs=outputs))
        variants.append(
            a_variant(
                f"{name}.v1.ort-fp32-t1", task=f"{name}-task", model=name, inputs=inputs, outputs=outputs, max_batch=8
            )
        )

    add("simple", SIMPLE_INPUTS, SIMPLE_OUTPUTS)
    add("rank", (SCORES,), (SCORES,))
    for name, spec in ECHO_TASKS.items():
        add(name, (spec,), (TensorSpec("out", spec.datatype, spec.shape),))
    instances = [an_instance(f"i-{v.model}", variant=v.name) for v in variants]
    view = a_view(tasks=tasks, variants=variants, workers=[a_worker(instances=instances)])
    rank = TaskName("rank-task")
    labelled = replace(view.tasks[rank], classes=("cat", "dog", "hen", "owl"))
    return replace(view, tasks={**view.tasks, rank: labelled})


class ComputingService:
    """Implements `ports.QueryService`. `hold` keeps every query waiting until it is set; `refusal` refuses them all."""

    def __init__(self, view: ClusterView | None = None) -> None:
        self.view = view or simple_view()
        self.ready = True
        self.hold: asyncio.Event | None = None
        self.refusal: InfaasError | None = None
        self.seen: list[Query] = []
        self.turned_away: list[Query] = []
        """By the edge, which asked for a decision that says so."""
        self.cancelled: list[Query] = []
        self.alike: Counter[str] = Counter()
        self.decided = 0
        """How often it was asked not to wait for more."""
        self.arrived = asyncio.Event()
        self.dropped = asyncio.Event()
        self._decisions: dict[str, Decision] = {}
        self._stats: dict[VariantName, VariantStats] = {}
        self._running = 0
        self._tasks: set[asyncio.Task[Answer]] = set()

    async def submit(self, query: Query) -> Answer:
        self.seen.append(query)
        self.arrived.set()
        self._running += 1
        try:
            if self.hold is not None:
                await self.hold.wait()
            return self._answer(query)
        except asyncio.CancelledError:
            self.cancelled.append(query)
            self.dropped.set()
            raise
        finally:
            self._running -= 1

    def can_begin(self, query: Query) -> bool:
        return True

    def begin(self, query: Query, waiter: Waiter) -> Callable[[], None]:
        task = asyncio.create_task(self.submit(query), name="query")
        self._tasks.add(task)
        task.add_done_callback(partial(self._tell, waiter))
        return lambda: None if task.done() else self._cancel(task)

    def refused(self, query: Query, error: InfaasError) -> QueryFailedError:
        self.turned_away.append(query)
        return QueryFailedError(error, Outcome(DecisionId(f"d-turned-{len(self.turned_away)}"), slo_met=False))

    def decide(self) -> None:
        self.decided += 1

    def _cancel(self, task: asyncio.Task[Answer]) -> None:
        task.cancel()

    def _tell(self, waiter: Waiter, task: asyncio.Task[Answer]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if waiter.done():
            return
        if error is None:
            waiter.set_result(task.result())
        elif isinstance(error, Exception):
            waiter.set_exception(error)

    def _answer(self, query: Query) -> Answer:
        decision_id = DecisionId(f"d-{len(self._decisions)}")
        variant = self._variant(query)
        failed = Outcome(decision_id, slo_met=False, attempts=0, queue_s=0.001, total_s=0.001)
        self._remember(query, decision_id, variant)
        if self.refusal is not None:
            raise QueryFailedError(self.refusal, failed)
        if query.requirements.max_cost == 0:
            text = "no variant costs 0 USD per 1,000 queries; the nearest is 'simple.v1.ort-fp32-t1' with 0.1"
            raise QueryFailedError(RefusedError(text, code=Code.SLO_UNSATISFIABLE), failed)
        if variant is None:
            raise QueryFailedError(NotFoundError(f"unknown version {query.version}"), failed)
        outputs = _compute(query, variant)
        outcome = Outcome(
            decision_id,
            variant.name,
            variant.model,
            variant.version,
            WorkerId("w1"),
            InstanceId("i1"),
            attempts=1,
            queue_s=0.0005,
            run_s=0.001,
            total_s=0.002,
            slo_met=True if query.requirements.latency_s is not None else None,
            fallback="below ≥ floor" if query.requirements.fallback else None,
        )
        before = self._stats.get(variant.name, VariantStats(batches={}))
        self._stats[variant.name] = replace(
            before,
            inference_count=before.inference_count + query.items,
            execution_count=before.execution_count + 1,
            success_count=before.success_count + 1,
            run_s=before.run_s + 0.001,
            success_s=before.success_s + 0.002,
            queue_s=before.queue_s + 0.0005,
            last_inference_at=1_750_000_000.5,
            batches={query.items: (before.execution_count + 1, before.run_s + 0.001)},
        )
        return Answer(outcome, outputs)

    def _variant(self, query: Query) -> Variant | None:
        for variant in self.view.variants.values():
            if query.handle in (variant.name, variant.model, variant.task) and query.version in (None, variant.version):
                return variant
        return None

    def _remember(self, query: Query, decision_id: DecisionId, variant: Variant | None) -> None:
        decision = Decision(
            id=decision_id,
            request_id=query.id,
            at="2025-06-15T12:00:00.000Z",
            handle=query.handle,
            level=self.view.level_of(query.handle),
            task=None if variant is None else variant.task,
            policy="slo",
            requirements={"objective": query.requirements.objective.value},
            outcome="answered",
            reason="the only one",
            variant=None if variant is None else variant.name,
        )
        self._decisions[decision_id] = self._decisions[query.id] = decision

    def decision(self, key: str) -> Decision | None:
        return self._decisions.get(key)

    def note_alike(self, id: DecisionId, count: int) -> None:
        self.alike[id] += count

    def recent(self, limit: int) -> Sequence[Decision]:
        return list(self._decisions.values())[-limit:]

    def stats(self) -> Mapping[VariantName, VariantStats]:
        return self._stats

    def is_ready(self) -> bool:
        return self.ready

    def in_flight(self) -> int:
        return self._running

    def load(self, variant: VariantName, worker: WorkerId | None = None) -> WorkerId:
        if not self.view.workers:
            raise UnavailableError("no worker can take it")
        target = worker or WorkerId("w1")
        self._set_state(variant, InstanceState.LOADING)
        asyncio.get_running_loop().call_later(0.05, self._set_state, variant, InstanceState.READY)
        return target

    def unload(self, variant: VariantName) -> int:
        self._set_state(variant, InstanceState.DRAINING)
        asyncio.get_running_loop().call_later(0.05, self._remove, variant)
        return 1

    def _set_state(self, variant: VariantName, state: InstanceState) -> None:
        worker = self.view.workers[WorkerId("w1")]
        record = an_instance(f"i-{variant}", variant=variant, state=state)
        kept = {k: i for k, i in worker.instances.items() if i.variant != variant}
        self.view = self.view.with_worker(replace(worker, instances={**kept, record.id: record}))

    def _remove(self, variant: VariantName) -> None:
        worker = self.view.workers[WorkerId("w1")]
        kept = {k: i for k, i in worker.instances.items() if i.variant != variant}
        self.view = self.view.with_worker(replace(worker, instances=kept))


def _compute(query: Query, variant: Variant) -> tuple[Tensor, ...]:
    by_name = {tensor.name: tensor for tensor in query.inputs}
    if variant.model == "simple":
        left, right = as_array(by_name["INPUT0"]), as_array(by_name["INPUT1"])
        if (left == -(2**31)).any():
            raise QueryFailedError(
                ModelError("the model raised: overflow"), Outcome(DecisionId("d-raised"), variant.name, attempts=1)
            )
        made = {"OUTPUT0": left + right, "OUTPUT1": left - right}
        tensors = {
            name: Tensor(name, Datatype.INT32, array.shape, np.ascontiguousarray(array).tobytes())
            for name, array in made.items()
        }
    elif variant.model == "rank":
        tensors = {"scores": by_name["scores"]}
    else:
        (only,) = query.inputs
        tensors = {"out": only._replace(name="out")}
    return tuple(tensors[name] for name in (query.outputs or [spec.name for spec in variant.outputs]))
