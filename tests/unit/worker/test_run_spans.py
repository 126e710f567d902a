"""The worker's spans: one per traced query that ran, below the span that came with it, and nothing kept afterwards."""

from __future__ import annotations

from infaas_controller.queues import Ticket
from infaas_controller.wire import encode_batch
from infaas_worker.api.tracing import RUN, RunSpans
from infaas_worker.batches import Ran

from infaas.domain.ids import InstanceId
from infaas.domain.query import TraceContext
from infaas.errors import InfaasError, ModelError
from infaas.observe.trace import Attributes, Span
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.testing.builders import a_query, a_variant
from infaas.testing.clock import ManualClock

TRACE = "0af7651916cd43dd8448eb211c80319c"
SAMPLED = TraceContext(f"00-{TRACE}-b7ad6b7169203331-01", "them=1")
UNSAMPLED = TraceContext(f"00-{TRACE}-b7ad6b7169203332-00")
INSTANCE = InstanceId("i1")


class Recorded:
    """Implements `Tracing` by remembering."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, TraceContext, float, float, Attributes, str]] = []

    def begin(self, name: str, parent: TraceContext | None, at_s: float) -> Span:
        raise AssertionError("a worker begins no spans")

    def record(
        self, name: str, parent: TraceContext, began_s: float, ended_s: float, attributes: Attributes, error: str = ""
    ) -> None:
        self.spans.append((name, parent, began_s, ended_s, attributes, error))

    def close(self, timeout_s: float) -> None:
        """Nothing is held back."""


def a_batch(number: int, *traces: TraceContext | None) -> pb.Batch:
    """As it comes over the wire: query 1 has the first trace, and so on."""
    tickets = [Ticket(n, a_query(trace=trace), None) for n, trace in enumerate(traces, 1)]
    return pb.ControllerMessage.FromString(encode_batch(number, INSTANCE, tickets, 0.0)[0]).batch


def ran(*queries: int, result: InfaasError | None = None) -> Ran:
    return Ran(queries, result or ModelError("it raised"), frozenset(), staged_s=0.002, run_s=0.5)


def spans() -> tuple[RunSpans, Recorded]:
    recorded = Recorded()
    return RunSpans(recorded, "w1", ManualClock(100.0)), recorded


def test_each_sampled_query_that_ran_has_a_span_of_the_run() -> None:
    made, recorded = spans()
    made.arrived("c#1", a_batch(5, SAMPLED, UNSAMPLED, None, SAMPLED))
    made.ran("c#1", 5, ran(1, 2, 3), {INSTANCE: a_variant("v1")})  # the fourth did not run
    ((name, parent, began_s, ended_s, said, error),) = recorded.spans
    assert (name, parent, error) == (RUN, SAMPLED, "model-failed")
    assert (began_s, ended_s) == (99.5, 100.0)
    assert said["infaas.variant"] == "v1"
    assert (said["infaas.worker"], said["infaas.instance"]) == ("w1", "i1")
    assert (said["infaas.batch_queries"], said["infaas.staged_ms"]) == (3, 2.0)
    made.ran("c#1", 5, ran(1), {})
    assert len(recorded.spans) == 1


def test_what_was_refused_or_left_leaves_no_span_behind() -> None:
    made, recorded = spans()
    for number in (1, 2):
        made.arrived("c#1", a_batch(number, SAMPLED))
    made.arrived("d#2", a_batch(1, SAMPLED))
    made.refused("c#1", 1)
    made.left("c#1")
    for number in (1, 2):
        made.ran("c#1", number, ran(1), {})
    assert recorded.spans == []
    made.ran("d#2", 1, ran(1), {})
    assert len(recorded.spans) == 1
