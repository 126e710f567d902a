"""What goes with an answer besides its tensors: the same fields as REST headers and as gRPC metadata."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping

import msgspec

from infaas.domain.ids import fresh_id
from infaas.domain.query import TraceContext
from infaas.errors import InfaasError, InvalidError
from infaas.rpc.edges import edge_of, retry_after_header
from infaas_controller.ports import Outcome

REQUEST_ID = "x-request-id"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
DECISION_ID = "x-infaas-decision-id"
MAX_REQUEST_ID = 128
MAX_TRACESTATE = 512

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")
_UNPRINTABLE = re.compile(r"[^\x20-\x7e]+")
_PROCESS = fresh_id("r")
_COUNT = itertools.count(1)

Fields = list[tuple[str, str]]


class Caller(msgspec.Struct, frozen=True):
    """How a request is known to its caller."""

    request_id: str
    traceparent: str | None = None
    tracestate: str | None = None

    @property
    def trace(self) -> TraceContext | None:
        return None if self.traceparent is None else TraceContext(self.traceparent, self.tracestate or "")


def fresh_caller() -> Caller:
    return Caller(fresh_request_id())


def fresh_request_id() -> str:
    """Unique without asking the system for randomness at every query: random per process, counted within it."""
    return f"{_PROCESS}-{next(_COUNT):x}"


def read_caller(headers: Mapping[str, str], body_id: str = "") -> Caller:
    """The header wins over the request's own `id`; where neither can serve as an id, one is made.

    Raises InvalidError for an `x-request-id` that could not be sent back as it came. An unusable trace context is
    dropped, as its standard demands.
    """
    given = headers.get(REQUEST_ID)
    if given is not None and not _REQUEST_ID.fullmatch(given):
        raise InvalidError(
            f"header {REQUEST_ID!r} must be 1 to {MAX_REQUEST_ID} printable ASCII characters without spaces"
        )
    request_id = given or (body_id if _REQUEST_ID.fullmatch(body_id) else fresh_request_id())
    traceparent = headers.get(TRACEPARENT)
    if traceparent is None or not _TRACEPARENT.fullmatch(traceparent) or len(traceparent) > MAX_TRACESTATE:
        return Caller(request_id)
    tracestate = headers.get(TRACESTATE)
    if tracestate is not None and (len(tracestate) > MAX_TRACESTATE or _UNPRINTABLE.search(tracestate)):
        tracestate = None
    return Caller(request_id, _UNPRINTABLE.sub("", traceparent), tracestate)


def caller_fields(caller: Caller) -> Fields:
    fields = [(REQUEST_ID, caller.request_id)]
    if caller.traceparent is not None:
        fields.append((TRACEPARENT, caller.traceparent))
        if caller.tracestate:
            fields.append((TRACESTATE, caller.tracestate))
    return fields


def answer_fields(caller: Caller, outcome: Outcome | None) -> Fields:
    """For an answer, and for an error of a query that got as far as a decision; those of a usual answer in one step."""
    if outcome is not None and _is_usual(caller, outcome):
        queue_ms = f"{outcome.queue_s * 1e3:.3f}"
        timing = f"queue;dur={queue_ms}, run;dur={outcome.run_s * 1e3:.3f}, total;dur={outcome.total_s * 1e3:.3f}"
        return [
            (REQUEST_ID, caller.request_id),
            (DECISION_ID, outcome.decision_id),
            ("x-infaas-variant", str(outcome.variant)),
            ("x-infaas-worker", str(outcome.worker)),
            ("x-infaas-slo-met", "true" if outcome.slo_met else "false"),
            ("x-infaas-attempts", str(outcome.attempts)),
            ("x-infaas-queue-ms", queue_ms),
            ("server-timing", timing),
        ]
    fields = caller_fields(caller)
    if outcome is None:
        return fields
    fields.append((DECISION_ID, outcome.decision_id))
    if outcome.variant is not None:
        fields.append(("x-infaas-variant", outcome.variant))
    if outcome.worker is not None:
        fields.append(("x-infaas-worker", outcome.worker))
    if outcome.slo_met is not None:
        fields.append(("x-infaas-slo-met", "true" if outcome.slo_met else "false"))
    fields.append(("x-infaas-attempts", str(outcome.attempts)))
    fields.append(("x-infaas-queue-ms", f"{outcome.queue_s * 1e3:.3f}"))
    if outcome.cold_start:
        fields.append(("x-infaas-cold-start", "true"))
    if outcome.fallback is not None:
        fields.append(("x-infaas-fallback", printable(outcome.fallback)))
    fields.append(
        (
            "server-timing",
            f"queue;dur={outcome.queue_s * 1e3:.3f}, run;dur={outcome.run_s * 1e3:.3f}, "
            f"total;dur={outcome.total_s * 1e3:.3f}",
        )
    )
    return fields


def answer_lines(caller: Caller, outcome: Outcome) -> str:
    """`answer_fields` as HTTP/1.1 writes them; those of a usual answer in one step."""
    if not _is_usual(caller, outcome):
        return lines_of(answer_fields(caller, outcome))
    queue_ms = f"{outcome.queue_s * 1e3:.3f}"
    return (
        f"{REQUEST_ID}: {caller.request_id}\r\n"
        f"{DECISION_ID}: {outcome.decision_id}\r\n"
        f"x-infaas-variant: {outcome.variant}\r\n"
        f"x-infaas-worker: {outcome.worker}\r\n"
        f"x-infaas-slo-met: {'true' if outcome.slo_met else 'false'}\r\n"
        f"x-infaas-attempts: {outcome.attempts}\r\n"
        f"x-infaas-queue-ms: {queue_ms}\r\n"
        f"server-timing: queue;dur={queue_ms}, run;dur={outcome.run_s * 1e3:.3f}, "
        f"total;dur={outcome.total_s * 1e3:.3f}\r\n"
    )


def _is_usual(caller: Caller, outcome: Outcome) -> bool:
    return (
        caller.traceparent is None
        and outcome.variant is not None
        and outcome.worker is not None
        and outcome.slo_met is not None
        and not outcome.cold_start
        and outcome.fallback is None
    )


def lines_of(fields: Fields) -> str:
    return "".join([f"{name}: {value}\r\n" for name, value in fields])


def error_fields(error: InfaasError, *, is_query: bool) -> Fields:
    """What only an error carries. `is_query`: only queries are dropped."""
    fields: Fields = []
    dropped = edge_of(error.code).dropped
    if is_query and dropped is not None:
        fields.append(("x-infaas-dropped-reason", dropped))
    wait = retry_after_header(error)
    if wait is not None:
        fields.append(("retry-after", wait))
    return fields


def printable(text: str) -> str:
    """A reason as a header can hold it: one line of ASCII."""
    return _UNPRINTABLE.sub("?", text.replace("≥", ">=").replace("≤", "<=").replace("×", "x").replace("–", "-"))
