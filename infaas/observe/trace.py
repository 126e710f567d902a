"""Tracing: what a program does for a query becomes spans of the trace that its caller began.

W3C trace context is always taken, passed on and given back. Spans are made only where `observe.otlp_endpoint` names a
collector; then `infaas.observe.otlp` is imported, which needs the extra `otel`. Nothing here knows OpenTelemetry.

Spans are made when what they tell of is over, from times that were measured anyway, so that tracing adds no clock to
the query path and a query that is not traced costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from infaas.clock import Clock
from infaas.domain.query import TraceContext
from infaas.errors import SettingsError
from infaas.settings import Settings

Attributes = Mapping[str, str | int | float | bool]

SAMPLED = 1


class Span(Protocol):
    """Something that goes on. Exactly one `end` must follow."""

    @property
    def context(self) -> TraceContext:
        """What hangs below this span: its children here, or those of another program."""

    def end(self, at_s: float, attributes: Attributes, error: str = "") -> None:
        """`at_s` is on the program's monotonic clock. `error`: a code's slug; empty when all went well."""


class Tracing(Protocol):
    """Calls are quick and never raise: spans are handed to a thread that sends them, and are dropped when that cannot
    keep up."""

    def begin(self, name: str, parent: TraceContext | None, at_s: float) -> Span:
        """A span below `parent`, or the first of a new trace."""

    def record(
        self,
        name: str,
        parent: TraceContext,
        began_s: float,
        ended_s: float,
        attributes: Attributes,
        error: str = "",
    ) -> None:
        """A span that is over already."""

    def close(self, timeout_s: float) -> None:
        """Send what is left. Blocks; nothing may be recorded afterwards."""


def open_tracing(settings: Settings, program: str, clock: Clock) -> Tracing | None:
    """None where no collector is configured. Raises SettingsError when the extra is not installed."""
    endpoint = settings.observe.otlp_endpoint
    if endpoint is None:
        return None
    try:
        from infaas.observe.otlp import OtlpTracing
    except ImportError as error:
        raise SettingsError(
            f"observe.otlp_endpoint is set, but {error.name or 'OpenTelemetry'} is not installed; "
            "`pip install 'infaas[otel]'` brings it"
        ) from error
    return OtlpTracing(endpoint, settings.observe.trace_ratio, program, clock)


def is_sampled(trace: TraceContext) -> bool:
    """Whether the caller records this trace: the lowest bit of the flags."""
    flags = trace.traceparent.split("-")[3:4]
    return bool(flags and int(flags[0][:2] or "0", 16) & SAMPLED)
