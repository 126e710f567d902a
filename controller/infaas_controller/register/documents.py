"""Documents of the control plane, made of the catalogue's rows and the view. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infaas.catalog.records import ModelRow, ResultRow, VersionRow
from infaas.clock import iso
from infaas.control import ModelDocument, OutcomeDocument, TaskDocument, VariantDocument, VersionDocument
from infaas.domain.cluster import ClusterView
from infaas.domain.ids import ModelName, VariantName
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import DEFAULT_FLOOR_MARGIN
from infaas.domain.task import Task
from infaas.domain.variant import AccuracySource, Variant, VariantState
from infaas_controller.register.publication import model_of
from infaas_controller.register.warm import instance_states


def task_document(task: Task, models: Sequence[ModelRow], variants: Sequence[Variant]) -> TaskDocument:
    """`task` with the defaults that hold; `models` and `variants` may be everybody's."""
    own = [model for model in models if model.task == task.name]
    current = {(model.name, model.current) for model in own}
    ready = [v for v in variants if (v.model, v.version) in current and v.state is VariantState.READY]
    measured = [
        v.profile.accuracy.value
        for v in ready
        if v.profile is not None and v.profile.accuracy and v.profile.accuracy.source is AccuracySource.MEASURED
    ]
    best = max(measured, default=None)
    floor = task.defaults.slo_accuracy_min
    if floor is None:
        floor = None if best is None else max(0.0, best - DEFAULT_FLOOR_MARGIN)
    return TaskDocument(task, tuple(model.name for model in own), len(ready), best, floor)


def model_document(
    row: ModelRow, versions: Sequence[VersionRow], results: Mapping[str, Sequence[ResultRow]], view: ClusterView
) -> ModelDocument:
    model = model_of(row, versions)
    documents = tuple(version_document(row, version, results.get(version.id, ())) for version in versions)
    return ModelDocument(
        name=row.name,
        task=row.task,
        state=model.state,
        reason=model.reason,
        current=row.current,
        labels=row.labels,
        versions=documents,
        serves=_served(row.name, view),
    )


def _served(name: ModelName, view: ClusterView) -> int | None:
    """None also where the model's record came before its variants'."""
    current = view.models[name].current if name in view.models else None
    return current if any((one.model, one.version) == (name, current) for one in view.variants.values()) else None


def version_document(row: ModelRow, version: VersionRow, results: Sequence[ResultRow]) -> VersionDocument:
    return VersionDocument(
        model=row.name,
        task=row.task,
        version=version.number,
        state=version.state,
        reason=version.reason,
        is_current=row.current == version.number,
        digest=version.original,
        created_at=iso(version.created_at),
        metric=version.metric,
        evaluation_rows=version.evaluation_rows,
        declared_accuracy=version.declared_accuracy,
        variants=tuple(result.variant for result in results if result.variant is not None),
        outcomes=tuple(
            OutcomeDocument(r.recipe, r.outcome, r.reason, r.variant, r.max_abs_error, r.seconds) for r in results
        ),
    )


def variant_document(
    variant: Variant,
    current: Mapping[str, int | None],
    view: ClusterView,
    dominators: Mapping[VariantName, VariantName | None],
) -> VariantDocument:
    """`current`: the version that serves, by model; `dominators`: of every comparable variant."""
    profile = variant.profile
    replicas = sum(state is InstanceState.READY for state, _ in instance_states(view, variant.name))
    document = {
        "name": variant.name,
        "task": variant.task,
        "model": variant.model,
        "version": variant.version,
        "is_current": current.get(variant.model) == variant.version,
        "recipe": variant.recipe,
        "runtime": variant.runtime,
        "hardware": variant.hardware,
        "precision": variant.precision,
        "threads": variant.threads,
        "max_batch_size": variant.max_batch_size,
        "state": variant.state,
        "reason": variant.reason,
        "isolation": variant.isolation,
        "isolation_reason": variant.isolation_reason,
        "replicas": replicas,
        "is_on_frontier": variant.name in dominators and dominators[variant.name] is None,
        "dominated_by": dominators.get(variant.name),
    }
    if profile is not None:
        document |= {
            "accuracy": profile.accuracy,
            "p50_ms": profile.latency_s(1, "p50_s") * 1e3,
            "p95_ms": profile.latency_s(1) * 1e3,
            "throughput_per_s": profile.throughput_per_s,
            "cost_usd_per_1k": profile.cost_usd_per_1k,
            "cold_load_ms": profile.cold_load_s * 1e3,
            "warm_load_ms": profile.warm_load_s * 1e3,
            "resident_memory_bytes": profile.resident_memory_bytes,
            "peak_memory_bytes": profile.peak_memory_bytes,
            "fit_error": profile.fit_error,
            "latency": profile.latency,
            "samples": profile.samples,
        }
    return VariantDocument(**document)  # type: ignore[arg-type]
