"""The only place where an error of ours becomes an HTTP or gRPC status, and the body that goes with it.

Both protocols, the control plane and the clients read the same table, so a code never means two things.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import msgspec

from infaas.domain.query import Code
from infaas.errors import InfaasError

log = logging.getLogger(__name__)

MAX_TEXT = 4_000
"""Characters of an error's text: what it quotes of a request is as long as its caller likes."""
MAX_PROBLEMS = 100
MAX_STATUS_BYTES = 3_000
"""Of a gRPC status message as it is encoded: clients take about 8 KiB of trailers by default, all keys together."""
HIDDEN_TEXT = "internal error; the log of the controller has the details under this request id"


@dataclass(frozen=True, slots=True)
class Edge:
    http: int
    grpc: str
    """The name of a `grpc.StatusCode`."""
    dropped: str | None = None
    """The word of `x-infaas-dropped-reason`, when a query that ends so was dropped rather than wrong."""


EDGES: Mapping[Code, Edge] = {
    Code.INVALID: Edge(400, "INVALID_ARGUMENT"),
    Code.UNAUTHENTICATED: Edge(401, "UNAUTHENTICATED"),
    Code.FORBIDDEN: Edge(403, "PERMISSION_DENIED"),
    Code.NOT_FOUND: Edge(404, "NOT_FOUND"),
    Code.CONFLICT: Edge(409, "ABORTED"),
    Code.PRECONDITION: Edge(412, "ABORTED"),
    Code.TOO_LARGE: Edge(413, "RESOURCE_EXHAUSTED"),
    Code.SLO_UNSATISFIABLE: Edge(422, "FAILED_PRECONDITION"),
    Code.SATURATED: Edge(429, "RESOURCE_EXHAUSTED", "saturated"),
    Code.DEADLINE_UNREACHABLE: Edge(429, "RESOURCE_EXHAUSTED", "deadline-unreachable"),
    Code.QUOTA: Edge(429, "RESOURCE_EXHAUSTED", "quota"),
    Code.EVICTED: Edge(429, "RESOURCE_EXHAUSTED", "evicted-priority"),
    Code.NO_WORKER: Edge(503, "UNAVAILABLE", "no-worker"),
    # Nothing that could run the query is ready yet or any more: for its caller that is the same as no worker.
    Code.LOADING: Edge(503, "UNAVAILABLE", "no-worker"),
    Code.DRAINING: Edge(503, "UNAVAILABLE", "no-worker"),
    Code.UNAVAILABLE: Edge(503, "UNAVAILABLE"),
    Code.DEADLINE_PASSED: Edge(504, "DEADLINE_EXCEEDED", "deadline-passed"),
    # nginx's number for a caller that left: nobody reads the answer, but access logs and metrics do.
    Code.CANCELLED: Edge(499, "CANCELLED", "cancelled"),
    Code.MODEL_FAILED: Edge(500, "INTERNAL"),
    Code.INTERNAL: Edge(500, "INTERNAL"),
    Code.UNSUPPORTED: Edge(501, "UNIMPLEMENTED"),
}

_STATUS_SAFE = "".join(chr(number) for number in range(0x20, 0x7F) if chr(number) != "%")
_WORTH_WAITING = frozenset({429, 503})
_CODE_OF_STATUS = {
    400: Code.INVALID,
    401: Code.UNAUTHENTICATED,
    403: Code.FORBIDDEN,
    404: Code.NOT_FOUND,
    405: Code.INVALID,
    408: Code.INVALID,
    409: Code.CONFLICT,
    412: Code.PRECONDITION,
    413: Code.TOO_LARGE,
    415: Code.INVALID,
    422: Code.INVALID,
    429: Code.SATURATED,
    431: Code.TOO_LARGE,
    501: Code.UNSUPPORTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_PASSED,
}


class ErrorBody(msgspec.Struct, frozen=True, omit_defaults=True):
    """What every error answer holds. `problems` is there only when a check found several."""

    error: str
    code: str
    request_id: str | None
    decision_id: str | None
    retryable: bool
    problems: tuple[str, ...] = ()


def edge_of(code: Code) -> Edge:
    return EDGES[code]


def code_of_status(status: int) -> Code:
    """The slug for an error that the web framework raised by itself (no such path, no such method)."""
    if status in _CODE_OF_STATUS:
        return _CODE_OF_STATUS[status]
    return Code.INVALID if 400 <= status < 500 else Code.INTERNAL


def error_body(error: InfaasError, request_id: str | None, decision_id: str | None = None) -> bytes:
    return msgspec.json.encode(error_document(error, request_id, decision_id))


def error_document(error: InfaasError, request_id: str | None, decision_id: str | None = None) -> ErrorBody:
    problems = tuple(shortened(problem) for problem in error.problems[:MAX_PROBLEMS]) if len(error.problems) > 1 else ()
    return ErrorBody(
        shortened(error.text), error.code.value, request_id, decision_id, error.is_retryable, problems
    )  # fmt: skip


def shortened(text: str) -> str:
    """A text that any answer can hold: of bounded length, and of characters that UTF-8 has."""
    if len(text) > MAX_TEXT:
        text = f"{text[: MAX_TEXT - 3]}..."
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


def status_text(text: str) -> str:
    """The same for gRPC, which spells every byte beyond printable ASCII as three."""
    text = shortened(text)
    while len(quote(text, safe=_STATUS_SAFE)) > MAX_STATUS_BYTES:
        text = f"{text[: len(text) * 3 // 4]}..."
    return text


def retry_after_s(error: InfaasError) -> float | None:
    """How long a caller should wait before the next try; None when waiting does not help."""
    if error.retry_after_s is not None:
        return max(0.0, error.retry_after_s)
    if EDGES[error.code].http in _WORTH_WAITING:
        return 1.0
    return None


def retry_after_header(error: InfaasError) -> str | None:
    """`Retry-After` counts whole seconds: rounded up, at least one."""
    wait_s = retry_after_s(error)
    return None if wait_s is None else str(max(1, math.ceil(wait_s)))


def as_error(exception: BaseException, request_id: str | None = None) -> InfaasError:
    """Our own errors as they are; anything else is logged here and hidden from the caller."""
    if isinstance(exception, InfaasError):
        return exception
    log.error("unexpected error", exc_info=exception, extra={"request_id": request_id})
    return InfaasError(HIDDEN_TEXT)
