"""Domain values for tests: every builder gives a sensible whole, and a test names only what matters to it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from infaas.domain.cluster import ClusterView, InstanceRecord, WorkerRecord
from infaas.domain.ids import Digest, InstanceId, ModelName, TaskName, TenantName, VariantName, WorkerId
from infaas.domain.lifecycle import Death, InstanceState, WorkerState
from infaas.domain.query import (
    HARD_LIMIT_S,
    AccuracyConfidence,
    Objective,
    Priority,
    Query,
    Requirements,
    TraceContext,
)
from infaas.domain.task import Model, ModelState, Task, TaskDefaults
from infaas.domain.tensor import Datatype, Tensor, TensorSpec, signature
from infaas.domain.variant import (
    Accuracy,
    AccuracySource,
    Hardware,
    Isolation,
    LatencyPoint,
    Precision,
    Profile,
    Runtime,
    Variant,
    VariantState,
)

DIGITS_INPUTS = (TensorSpec("image", Datatype.FP32, (-1, 64)),)
DIGITS_OUTPUTS = (TensorSpec("label", Datatype.INT64, (-1,)), TensorSpec("probability", Datatype.FP32, (-1, 10)))
DEFAULT_BATCHES = (1, 2, 4, 8, 16, 32)
MIB = 2**20


def a_digest(seed: str = "artifact") -> Digest:
    return Digest(hashlib.sha256(seed.encode()).hexdigest())


def a_task(
    name: str = "digits",
    *,
    inputs: tuple[TensorSpec, ...] = DIGITS_INPUTS,
    outputs: tuple[TensorSpec, ...] = DIGITS_OUTPUTS,
    metric: str = "accuracy",
    defaults: TaskDefaults | None = None,
    labels: Mapping[str, str] | None = None,
) -> Task:
    return Task(TaskName(name), inputs, outputs, metric, (), dict(labels or {}), defaults or TaskDefaults())


def a_model(
    name: str = "m1",
    *,
    task: str = "digits",
    current: int | None = 1,
    state: ModelState | None = None,
    labels: Mapping[str, str] | None = None,
    reason: str = "",
) -> Model:
    """READY when it has a current version, unless told otherwise."""
    fitting = ModelState.UNAVAILABLE if current is None else ModelState.READY
    return Model(ModelName(name), TaskName(task), current, dict(labels or {}), state or fitting, reason)


def an_accuracy(
    value: float = 0.9,
    *,
    margin: float = 0.02,
    rows: int = 600,
    source: AccuracySource = AccuracySource.MEASURED,
    metric: str = "accuracy",
    raw: float | None = None,
) -> Accuracy:
    return Accuracy(metric, value, max(0.0, value - margin), min(1.0, value + margin), rows, source, raw)


def a_profile(
    *,
    p95_ms: float = 2.0,
    per_item_ms: float | None = None,
    batches: Sequence[int] = DEFAULT_BATCHES,
    accuracy: float | Accuracy | None = 0.9,
    cost: float = 0.1,
    load_ms: float = 100.0,
    memory_mib: float = 50.0,
) -> Profile:
    """`p95_ms` is at batch 1; each further item adds `per_item_ms` (a half of it if not given).

    The other quantiles are fixed shares of p95, so that a test can tell them apart.
    """
    step_ms = p95_ms / 2 if per_item_ms is None else per_item_ms
    points = tuple(_latency_point(batch, (p95_ms + step_ms * (batch - 1)) / 1e3) for batch in sorted(set(batches)))
    best = max(points, key=lambda point: point.batch / point.mean_s)
    return Profile(
        latency=points,
        fit_base_s=0.9 * (p95_ms - step_ms) / 1e3,
        fit_per_item_s=0.9 * step_ms / 1e3,
        fit_error=0.0,
        cold_load_s=load_ms / 1e3,
        warm_load_s=load_ms / 2e3,
        peak_memory_bytes=int(memory_mib * 1.5 * MIB),
        resident_memory_bytes=int(memory_mib * MIB),
        throughput_per_s=best.batch / best.mean_s,
        best_batch=best.batch,
        cost_usd_per_1k=cost,
        accuracy=an_accuracy(accuracy) if isinstance(accuracy, int | float) else accuracy,
        budget_s=3.0,
        measured_at="2025-06-15T12:00:00.000Z",
        host="test-host",
    )


def _latency_point(batch: int, p95_s: float) -> LatencyPoint:
    return LatencyPoint(batch, 0.92 * p95_s, 0.9 * p95_s, p95_s, 1.1 * p95_s, 500)


def a_variant(
    name: str = "v1",
    *,
    task: str = "digits",
    model: str = "m1",
    version: int = 1,
    p95_ms: float = 2.0,
    per_item_ms: float | None = None,
    accuracy: float | Accuracy | None = 0.9,
    cost: float = 0.1,
    threads: int = 1,
    max_batch: int = 32,
    fixed_batch: int | None = None,
    load_ms: float = 100.0,
    memory_mib: float = 50.0,
    profile: Profile | None = None,
    has_profile: bool = True,
    state: VariantState = VariantState.READY,
    reason: str = "",
    recipe: str = "",
    runtime: Runtime = Runtime.ONNXRUNTIME,
    hardware: Hardware = Hardware.CPU,
    precision: Precision = Precision.FP32,
    inputs: tuple[TensorSpec, ...] = DIGITS_INPUTS,
    outputs: tuple[TensorSpec, ...] = DIGITS_OUTPUTS,
    artifact: Digest | None = None,
    isolation: Isolation = Isolation.THREAD,
) -> Variant:
    """A published variant. `has_profile=False` leaves it unmeasured; `profile` replaces the one made of the figures."""
    if profile is None and has_profile:
        batches = (fixed_batch,) if fixed_batch else [batch for batch in DEFAULT_BATCHES if batch <= max_batch]
        profile = a_profile(
            p95_ms=p95_ms, per_item_ms=per_item_ms, batches=batches, accuracy=accuracy, cost=cost,
            load_ms=load_ms, memory_mib=memory_mib,
        )  # fmt: skip
    return Variant(
        name=VariantName(name),
        task=TaskName(task),
        model=ModelName(model),
        version=version,
        recipe=recipe or f"ort-{precision.value}-t{threads}",
        runtime=runtime,
        hardware=hardware,
        precision=precision,
        threads=threads,
        max_batch_size=max_batch,
        fixed_batch=fixed_batch,
        artifact=artifact or a_digest(name),
        inputs=inputs,
        outputs=outputs,
        profile=profile,
        state=state,
        reason=reason,
        isolation=isolation,
    )


def an_instance(
    id: str = "i1",
    *,
    variant: str = "v1",
    worker: str = "w1",
    state: InstanceState = InstanceState.READY,
    slots: int = 2,
    loaded_at: float = 1_750_000_000.0,
    last_ok_at: float = 1_750_000_000.0,
    reason: str = "",
    isolation: Isolation = Isolation.THREAD,
    death: Death | None = None,
) -> InstanceRecord:
    return InstanceRecord(
        InstanceId(id), VariantName(variant), WorkerId(worker), state, slots, loaded_at, last_ok_at, reason,
        isolation, death,
    )  # fmt: skip


def a_worker(
    id: str = "w1",
    *,
    instances: Iterable[InstanceRecord] = (),
    state: WorkerState = WorkerState.READY,
    pool: str = "local",
    cores: int = 2,
    memory_mib: float = 1024.0,
    price_usd_per_hour: float = 0.08,
    address: str | None = None,
    host: str = "test-host",
    pid: int = 4242,
    started_at: float = 1_750_000_000.0,
    version: str = "0.1.0",
) -> WorkerRecord:
    """A worker with these instances; their `worker` must be its id."""
    by_id = {instance.id: instance for instance in instances}
    strays = [instance.id for instance in by_id.values() if instance.worker != id]
    if strays:
        raise ValueError(f"instances {strays} do not belong to worker {id!r}")
    return WorkerRecord(
        id=WorkerId(id),
        address=address or f"unix:/nowhere/{id}.sock",
        state=state,
        pool=pool,
        cores=cores,
        memory_bytes=int(memory_mib * MIB),
        price_usd_per_hour=price_usd_per_hour,
        host=host,
        pid=pid,
        started_at=started_at,
        instances=by_id,
        version=version,
    )


def requirements(
    *,
    latency_ms: float | None = None,
    accuracy_min: float | None = None,
    max_cost: float | None = None,
    objective: Objective = Objective.COST,
    priority: Priority = Priority.STANDARD,
    fallback: bool = False,
    explain: bool = False,
    accuracy_confidence: AccuracyConfidence = AccuracyConfidence.POINT,
    policy: str | None = None,
    tenant: str | None = None,
) -> Requirements:
    latency_s = None if latency_ms is None else latency_ms / 1e3
    return Requirements(
        latency_s, accuracy_min, max_cost, objective, priority, fallback, explain, accuracy_confidence, policy,
        None if tenant is None else TenantName(tenant),
    )  # fmt: skip


def a_tensor(spec: TensorSpec = DIGITS_INPUTS[0], *, items: int = 1) -> Tensor:
    """Zeros of a specification's shape, free dimensions beyond the batch taken as 1. BYTES elements are empty."""
    shape = (items, *(max(size, 1) for size in spec.shape[1:]))
    count = 1
    for size in shape:
        count *= size
    return Tensor(spec.name, spec.datatype, shape, bytes(count * (spec.datatype.itemsize or 4)))


def a_query(
    handle: str = "digits",
    *,
    id: str = "q1",
    version: int | None = None,
    items: int = 1,
    at: float = 1_000.0,
    latency_ms: float | None = None,
    accuracy_min: float | None = None,
    max_cost: float | None = None,
    objective: Objective = Objective.COST,
    priority: Priority = Priority.STANDARD,
    fallback: bool = False,
    explain: bool = False,
    policy: str | None = None,
    tenant: str | None = None,
    inputs: tuple[Tensor, ...] | None = None,
    outputs: tuple[str, ...] = (),
    deadline: float | None = None,
    trace: TraceContext | None = None,
) -> Query:
    """A query that arrives at `at` on the monotonic clock (where `ManualClock` starts)."""
    tensors = (a_tensor(items=items),) if inputs is None else inputs
    wanted = requirements(
        latency_ms=latency_ms, accuracy_min=accuracy_min, max_cost=max_cost, objective=objective, priority=priority,
        fallback=fallback, explain=explain, policy=policy, tenant=tenant,
    )  # fmt: skip
    limit_s = HARD_LIMIT_S if wanted.latency_s is None else wanted.latency_s
    return Query(
        id=id,
        handle=handle,
        version=version,
        requirements=wanted,
        items=items,
        signature=signature(tensors),
        inputs=tensors,
        outputs=outputs,
        arrived_at=at,
        deadline=at + limit_s if deadline is None else deadline,
        trace=trace,
    )


def a_view(
    *,
    tasks: Iterable[Task] | None = None,
    models: Iterable[Model] | None = None,
    variants: Iterable[Variant] = (),
    workers: Iterable[WorkerRecord] = (),
    version: int = 1,
) -> ClusterView:
    """A view of these parts. Tasks and models that are not given are made to fit the variants: each model's newest
    version is its current one."""
    by_variant = {variant.name: variant for variant in variants}
    if models is None:
        newest: dict[ModelName, Variant] = {}
        for variant in by_variant.values():
            if variant.model not in newest or newest[variant.model].version < variant.version:
                newest[variant.model] = variant
        models = [a_model(v.model, task=v.task, current=v.version) for v in newest.values()]
    by_model = {model.name: model for model in models}
    if tasks is None:
        specs = {variant.task: (variant.inputs, variant.outputs) for variant in by_variant.values()}
        for model in by_model.values():
            specs.setdefault(model.task, (DIGITS_INPUTS, DIGITS_OUTPUTS))
        tasks = [a_task(name, inputs=inputs, outputs=outputs) for name, (inputs, outputs) in specs.items()]
    return ClusterView(
        tasks={task.name: task for task in tasks},
        models=by_model,
        variants=by_variant,
        workers={worker.id: worker for worker in workers},
        version=version,
    )
