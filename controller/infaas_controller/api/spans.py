"""The controller's spans of one query: the request at the edge, and below it deciding and waiting.

The worker adds the run below the same request, in its own process; it learns the span from the query's trace context.
"""

from __future__ import annotations

from typing import Protocol

from infaas.domain.query import Priority
from infaas.errors import InfaasError
from infaas.observe.trace import Span, Tracing
from infaas_controller.api.headers import Caller
from infaas_controller.ports import Outcome

REQUEST = "infaas.request"
DECIDE = "infaas.decide"
QUEUE = "infaas.queue"


class Traced(Protocol):
    """What is read of a request that ended (`service.Ticket`)."""

    handle: str
    arrived_at: float
    priority: Priority
    items: int
    outcome: Outcome | None
    caller: Caller
    span: Span | None


class QuerySpans:
    """`protocol` is what the requests of this edge came by: `rest` or `grpc`."""

    def __init__(self, tracing: Tracing, protocol: str) -> None:
        self._tracing = tracing
        self._protocol = protocol

    def begin(self, caller: Caller, at_s: float) -> Span:
        return self._tracing.begin(REQUEST, caller.trace, at_s)

    def end(self, ticket: Traced, error: InfaasError | None, now: float) -> None:
        """Of every request, also of one that was refused before it had a span."""
        span = ticket.span or self.begin(ticket.caller, ticket.arrived_at)
        outcome = ticket.outcome
        if outcome is not None and outcome.decided_at:
            of_query: dict[str, str | int | float | bool] = {"infaas.decision_id": outcome.decision_id}
            decided = outcome.decided_at + outcome.decide_s
            waited = max(decided, ticket.arrived_at + outcome.queue_s)
            self._tracing.record(DECIDE, span.context, outcome.decided_at, decided, of_query)
            self._tracing.record(QUEUE, span.context, decided, waited, of_query | {"infaas.attempts": outcome.attempts})
        code = "" if error is None else error.code.value
        span.end(now, self._attributes(ticket, outcome, code), code)

    def _attributes(self, ticket: Traced, outcome: Outcome | None, code: str) -> dict[str, str | int | float | bool]:
        said: dict[str, str | int | float | bool] = {
            "infaas.protocol": self._protocol,
            "infaas.handle": ticket.handle[:128],
            "infaas.request_id": ticket.caller.request_id,
            "infaas.priority": ticket.priority.value,
            "infaas.items": ticket.items,
        }
        if code:
            said["infaas.code"] = code
        if outcome is None:
            return said
        said["infaas.decision_id"] = outcome.decision_id
        said["infaas.attempts"] = outcome.attempts
        said["infaas.cold_start"] = outcome.cold_start
        if outcome.variant is not None:
            said["infaas.variant"] = outcome.variant
        if outcome.worker is not None:
            said["infaas.worker"] = outcome.worker
        if outcome.slo_met is not None:
            said["infaas.slo_met"] = outcome.slo_met
        if outcome.fallback is not None:
            said["infaas.fallback"] = outcome.fallback
        return said
