"""The worker's part of a query's trace: the run of the batch that it was in, below the span that its controller named.

Kept from a batch's arrival to its answer, on the event loop; only what the caller records is kept at all.
"""

from __future__ import annotations

from collections.abc import Mapping

from infaas.clock import Clock
from infaas.domain.ids import InstanceId
from infaas.domain.query import TraceContext
from infaas.domain.variant import Variant
from infaas.errors import InfaasError
from infaas.observe.trace import Tracing, is_sampled
from infaas.rpc.v1 import worker_pb2
from infaas_worker.batches import Ran

RUN = "infaas.run"


class RunSpans:
    """One per worker; batches are told apart by their stream and number."""

    def __init__(self, tracing: Tracing, worker: str, clock: Clock) -> None:
        self._tracing = tracing
        self._worker = worker
        self._clock = clock
        self._traced: dict[tuple[str, int], tuple[InstanceId, dict[int, TraceContext]]] = {}

    def arrived(self, stream: str, batch: worker_pb2.Batch) -> None:
        """Of a batch that was taken: every trace is of one of its queries."""
        found = {batch.queries[one.place]: TraceContext(one.traceparent, one.tracestate) for one in batch.traces}
        traced = {number: trace for number, trace in found.items() if is_sampled(trace)}
        if traced:
            self._traced[stream, batch.id] = InstanceId(batch.instance), traced

    def ran(self, stream: str, batch: int, ran: Ran, variants: Mapping[InstanceId, Variant]) -> None:
        """A span for every traced query of it that ran."""
        found = self._traced.pop((stream, batch), None)
        if found is None:
            return
        instance, contexts = found
        now, variant = self._clock.now(), variants.get(instance)
        said: dict[str, str | int | float | bool] = {
            "infaas.worker": self._worker,
            "infaas.instance": instance,
            "infaas.batch_queries": len(ran.queries),
            "infaas.staged_ms": round(ran.staged_s * 1e3, 3),
        }
        if variant is not None:
            said["infaas.variant"] = variant.name
            said["infaas.runtime"] = variant.runtime.value
        error = ran.result.code.value if isinstance(ran.result, InfaasError) else ""
        for number in ran.queries:
            trace = contexts.get(number)
            if trace is not None:
                self._tracing.record(RUN, trace, now - ran.run_s, now, said, error)

    def refused(self, stream: str, batch: int) -> None:
        """It did not run, or its instance died: what its controller knows of it is in the controller's spans."""
        self._traced.pop((stream, batch), None)

    def left(self, stream: str) -> None:
        for key in [key for key in self._traced if key[0] == stream]:
            del self._traced[key]
