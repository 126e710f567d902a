"""What a query asks for and what its answer says, in the words of headers and metadata: shared by REST and gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import httpx

from infaas import errors
from infaas.client_tensors import Array
from infaas.domain.query import Code
from infaas.rpc.edges import code_of_status


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a caller asks for; what is None comes from the task's defaults."""

    slo_latency_ms: float | None = None
    slo_accuracy_min: float | None = None
    max_cost: float | None = None
    """USD per 1,000 queries."""
    objective: str | None = None
    priority: str | None = None
    fallback: bool | None = None
    explain: bool = False
    tenant: str | None = None
    """On whose behalf."""

    def headers(self) -> dict[str, str]:
        """As REST headers, which are also the gRPC metadata keys."""
        stated = {
            "x-infaas-slo-latency-ms": _number(self.slo_latency_ms),
            "x-infaas-slo-accuracy-min": _number(self.slo_accuracy_min),
            "x-infaas-max-cost": _number(self.max_cost),
            "x-infaas-objective": self.objective,
            "x-infaas-priority": self.priority,
            "x-infaas-fallback": None if self.fallback is None else ("allow" if self.fallback else "deny"),
            "x-infaas-explain": "true" if self.explain else None,
            "x-infaas-tenant": self.tenant,
        }
        return {name: value for name, value in stated.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Served:
    """What the answer headers say; present on answers and on errors."""

    request_id: str | None = None
    decision_id: str | None = None
    variant: str | None = None
    worker: str | None = None
    slo_met: bool | None = None
    attempts: int | None = None
    queue_ms: float | None = None
    cold_start: bool = False
    fallback: str | None = None
    dropped_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Inference:
    """An answer. `version` is the version that served; the variant is in `served`."""

    outputs: dict[str, Array]
    model: str
    version: str | None
    served: Served
    headers: Mapping[str, str]


class QueryError(errors.InfaasError):
    """A query that got no answer; `served` says what became of it."""

    def __init__(self, cause: errors.InfaasError, served: Served, headers: Mapping[str, str]) -> None:
        super().__init__(
            cause.text,
            code=cause.code,
            is_retryable=cause.is_retryable,
            retry_after_s=cause.retry_after_s,
            problems=cause.problems,
        )
        self.served = served
        self.headers = headers


_KINDS: Mapping[Code, type[errors.InfaasError]] = {
    Code.INVALID: errors.InvalidError,
    Code.NOT_FOUND: errors.NotFoundError,
    Code.CONFLICT: errors.ConflictError,
    Code.PRECONDITION: errors.PreconditionError,
    Code.UNAUTHENTICATED: errors.UnauthenticatedError,
    Code.TOO_LARGE: errors.TooLargeError,
    Code.UNSUPPORTED: errors.UnsupportedError,
    Code.UNAVAILABLE: errors.UnavailableError,
    Code.MODEL_FAILED: errors.ModelError,
}


def error_from(answer: httpx.Response) -> errors.InfaasError:
    """The server's error as ours; what did not come from our server still gets a code, by its status."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or "error" not in body:
        text = answer.text.strip()[:200] or answer.reason_phrase
        body = {"error": f"HTTP {answer.status_code}: {text}"}
    try:
        code = Code(body["code"])
    except (KeyError, ValueError):
        code = code_of_status(answer.status_code)
    kind = _KINDS.get(code, errors.InfaasError)
    retry_after = answer.headers.get("retry-after", "")
    return kind(
        str(body["error"]),
        code=code,
        is_retryable=bool(body.get("retryable", False)),
        retry_after_s=float(retry_after) if retry_after.isdigit() else None,
        problems=[str(problem) for problem in body.get("problems", [])],
    )


def served_from(headers: Mapping[str, str]) -> Served:
    """Headers, or gRPC metadata: the names are the same."""

    def ours(name: str) -> str | None:
        return headers.get(f"x-infaas-{name}")

    attempts, queue_ms, slo_met = ours("attempts"), ours("queue-ms"), ours("slo-met")
    return Served(
        request_id=headers.get("x-request-id"),
        decision_id=ours("decision-id"),
        variant=ours("variant"),
        worker=ours("worker"),
        slo_met=None if slo_met is None else slo_met == "true",
        attempts=None if attempts is None else int(attempts),
        queue_ms=None if queue_ms is None else float(queue_ms),
        cold_start=ours("cold-start") == "true",
        fallback=ours("fallback"),
        dropped_reason=ours("dropped-reason"),
    )


def _number(value: float | None) -> str | None:
    """The shortest text that reads back as the same number: a bound may be meant to the last digit."""
    return None if value is None else repr(float(value)).removesuffix(".0")
