"""`GET .../stats` in Triton's fields, for a task, a model or a variant, from the counters of the query path."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from infaas.domain.ids import VariantName
from infaas_controller.api.documents import Index, resolve
from infaas_controller.ports import VariantStats


def statistics(
    index: Index, stats: Mapping[VariantName, VariantStats], name: str, version: int | None
) -> list[dict[str, Any]]:
    """One row per version that the name admits, under the name that was asked for. Raises NotFoundError."""
    handle = resolve(index, name, version)
    versions = (version,) if version is not None else handle.versions
    rows = []
    for number in versions:
        of_version = resolve(index, name, number)
        rows.append(_row(name, number, [stats[v.name] for v in of_version.variants if v.name in stats]))
    return rows


def all_statistics(index: Index, stats: Mapping[VariantName, VariantStats]) -> list[dict[str, Any]]:
    """The rows of every name that the list of models and the repository index show, in their order.

    A query is counted once among the rows of one level: in that of the task, in that of the model and in that of the
    variant that answered it, as Triton counts a query in an ensemble and in the models it is composed of. Totals are
    sums over one level.
    """
    return [row for name in index.names() for row in statistics(index, stats, name, None)]


def _row(name: str, version: int, parts: Iterable[VariantStats]) -> dict[str, Any]:
    total = _sum(parts)
    return {
        "name": name,
        "version": str(version),
        "last_inference": int(total.last_inference_at * 1000),
        "inference_count": total.inference_count,
        "execution_count": total.execution_count,
        "inference_stats": {
            "success": _duration(total.success_count, total.success_s),
            "fail": _duration(total.fail_count, total.fail_s),
            "queue": _duration(total.success_count, total.queue_s),
            "compute_input": _duration(total.success_count, 0.0),
            "compute_infer": _duration(total.success_count, total.run_s),
            "compute_output": _duration(total.success_count, 0.0),
            "cache_hit": _duration(0, 0.0),
            "cache_miss": _duration(0, 0.0),
        },
        "response_stats": {},
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(count, 0.0),
                "compute_infer": _duration(count, run_s),
                "compute_output": _duration(count, 0.0),
            }
            for size, (count, run_s) in sorted((total.batches or {}).items())
        ],
        "memory_usage": [],
    }


def _sum(parts: Iterable[VariantStats]) -> VariantStats:
    found = list(parts)
    batches: dict[int, tuple[int, float]] = {}
    for part in found:
        for size, (count, run_s) in (part.batches or {}).items():
            before = batches.get(size, (0, 0.0))
            batches[size] = (before[0] + count, before[1] + run_s)
    return VariantStats(
        inference_count=sum(part.inference_count for part in found),
        execution_count=sum(part.execution_count for part in found),
        success_count=sum(part.success_count for part in found),
        fail_count=sum(part.fail_count for part in found),
        queue_s=sum(part.queue_s for part in found),
        run_s=sum(part.run_s for part in found),
        success_s=sum(part.success_s for part in found),
        fail_s=sum(part.fail_s for part in found),
        last_inference_at=max((part.last_inference_at for part in found), default=0.0),
        batches=batches,
    )


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": int(seconds * 1e9)}
