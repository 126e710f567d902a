"""Spans to a collector by OTLP over HTTP, through OpenTelemetry's SDK. Imported only where a collector is configured.

The SDK's batch processor owns a thread that sends; its queue is bounded, and what does not fit is dropped rather than
held against a query. Sampling follows the caller's flag, and `observe.trace_ratio` where a trace begins here. The
provider is never installed globally: this process belongs to its user.
"""

from __future__ import annotations

import logging
from urllib.parse import urlsplit, urlunsplit

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    set_span_in_context,
)

from infaas import __version__
from infaas.clock import Clock, WallTimes
from infaas.domain.query import TraceContext
from infaas.observe.trace import Attributes, Span

TRACES_PATH = "/v1/traces"
QUEUE_SPANS = 8_192
BATCH_SPANS = 512
EVERY_MS = 1_000.0
EXPORT_TIMEOUT_S = 5.0


class OtlpTracing:
    """Implements `infaas.observe.trace.Tracing`. The composition root closes it, once, off the event loop."""

    def __init__(self, endpoint: str, ratio: float, program: str, clock: Clock) -> None:
        self._wall = WallTimes(clock)
        resource = Resource.create({SERVICE_NAME: f"infaas-{program}", SERVICE_VERSION: __version__})
        # Sampled by its own rule only where a trace begins: otherwise the caller has decided.
        self._provider = TracerProvider(
            resource=resource, sampler=ParentBased(TraceIdRatioBased(ratio)), shutdown_on_exit=False
        )
        # The exporter says each failure at length; one line per batch that was lost is enough.
        logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
        self._processor = BatchSpanProcessor(
            OTLPSpanExporter(endpoint=traces_url(endpoint), timeout=EXPORT_TIMEOUT_S),
            max_queue_size=QUEUE_SPANS,
            schedule_delay_millis=EVERY_MS,
            max_export_batch_size=BATCH_SPANS,
        )
        self._provider.add_span_processor(self._processor)
        self._tracer: Tracer = self._provider.get_tracer("infaas", __version__)

    def begin(self, name: str, parent: TraceContext | None, at_s: float) -> Span:
        return _OtlpSpan(self, self._start(name, parent, at_s, SpanKind.SERVER))

    def record(
        self,
        name: str,
        parent: TraceContext,
        began_s: float,
        ended_s: float,
        attributes: Attributes,
        error: str = "",
    ) -> None:
        _OtlpSpan(self, self._start(name, parent, began_s, SpanKind.INTERNAL)).end(ended_s, attributes, error)

    def close(self, timeout_s: float) -> None:
        self._provider.force_flush(int(timeout_s * 1000))
        self._provider.shutdown()

    def wall_ns(self, at_s: float) -> int:
        """The monotonic clock's time as collectors count it."""
        return int(self._wall.of(at_s) * 1e9)

    def _start(self, name: str, parent: TraceContext | None, at_s: float, kind: SpanKind) -> SdkSpan:
        context = Context() if parent is None else _remote(parent)
        return self._tracer.start_span(name, context, kind=kind, start_time=self.wall_ns(at_s))


class _OtlpSpan:
    def __init__(self, tracing: OtlpTracing, span: SdkSpan) -> None:
        self._tracing = tracing
        self._span = span

    @property
    def context(self) -> TraceContext:
        own = self._span.get_span_context()
        text = f"00-{own.trace_id:032x}-{own.span_id:016x}-{int(own.trace_flags):02x}"
        return TraceContext(text, own.trace_state.to_header())

    def end(self, at_s: float, attributes: Attributes, error: str = "") -> None:
        self._span.set_attributes(attributes)
        if error:
            self._span.set_status(Status(StatusCode.ERROR, error))
        self._span.end(self._tracing.wall_ns(at_s))


def traces_url(endpoint: str) -> str:
    """A collector's address as OTLP/HTTP wants it: `/v1/traces` follows unless a path was given."""
    parts = urlsplit(endpoint)
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(TRACES_PATH) else path + TRACES_PATH))


def _remote(parent: TraceContext) -> Context:
    """`parent` was checked against the standard's grammar when it came in."""
    _, trace_id, span_id, flags = parent.traceparent.split("-")[:4]
    found = SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16)),
        trace_state=TraceState.from_header([parent.tracestate] if parent.tracestate else []),
    )
    return set_span_in_context(NonRecordingSpan(found), Context())
