"""Every Prometheus metric of a controller, declared once, on a registry of its own.

Counters and histograms are observed when a query ends. Gauges are counted from what lives at a scrape (`live`).
Labels are bounded: names of registered things, closed sets of codes and reasons, and `unknown` for all else.
"""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder

from infaas import __version__
from infaas.domain.query import Code, Priority
from infaas.errors import InfaasError
from infaas.observe.book import Book, OwnBook
from infaas.observe.live import Live, LiveCollector
from infaas.observe.series import Count, CountSeries, Spread, SpreadSeries
from infaas.observe.shared_memory import SharedMemoryCollector, SharedMemoryTally
from infaas.rpc.edges import as_error, edge_of, error_body

OK = "ok"
UNKNOWN = "unknown"

_SECONDS = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
_DECISION_SECONDS = (0.000005, 0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.005, 0.02, 0.1)
_RATIOS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_LOAD_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 120.0)
_BATCHES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


class _Ended:
    """What a request that ended adds to: looked up once for all that end alike."""

    __slots__ = ("cost", "dropped", "duration", "queue", "requests", "run")

    def __init__(
        self,
        requests: Count,
        duration: Spread,
        dropped: Count | None,
        queue: Spread | None = None,
        run: Spread | None = None,
    ) -> None:
        self.requests = requests
        self.duration = duration
        self.dropped = dropped
        self.queue = queue
        self.run = run
        self.cost: Count | None = None


class Account:
    """Where usual answers to one kind of query are counted: in time, without a load or a fallback."""

    __slots__ = ("_cost_each", "_ended")

    def __init__(self, ended: _Ended, cost_each: float) -> None:
        self._ended = ended
        self._cost_each = cost_each

    def observe(self, total_s: float, queue_s: float, run_s: float, items: int) -> None:
        ended = self._ended
        ended.requests.cells[0] += 1
        ended.duration.observe(total_s)
        if ended.queue is not None:
            ended.queue.observe(queue_s)
        if ended.run is not None:
            ended.run.observe(run_s)
        if ended.cost is not None:
            ended.cost.cells[0] += self._cost_each * items

    def observe_together(self, total_s: Sequence[float], queue_s: Sequence[float], run_s: float, items: int) -> None:
        """Of queries of one batch, who are so many `items` in all."""
        ended, count = self._ended, len(total_s)
        ended.requests.cells[0] += count
        ended.duration.observe_each(total_s)
        if ended.queue is not None:
            ended.queue.observe_each(queue_s)
        if ended.run is not None:
            ended.run.observe(run_s, count)
        if ended.cost is not None:
            ended.cost.cells[0] += self._cost_each * items


class Metrics:
    """The controller's metrics. Cheap to observe; written by the event loop alone."""

    def __init__(self, read_live: Callable[[], Live] | None = None, book: Book | None = None) -> None:
        """`book` keeps the numbers; without one, they are this object's own."""
        self.registry = CollectorRegistry()
        book = OwnBook() if book is None else book
        counter = partial(CountSeries, self.registry, book=book)
        histogram = partial(SpreadSeries, self.registry, book=book)
        self._requests = counter(
            "infaas_requests_total", "Queries by how they ended", ["model", "variant", "code", "reason", "priority"]
        )
        self._request_duration = histogram(
            "infaas_request_duration_seconds", "From arrival to answer", ["model", "code"], _SECONDS
        )
        self._queue_duration = histogram(
            "infaas_queue_duration_seconds", "Waiting in the controller", ["model"], _SECONDS
        )
        self._inference_duration = histogram(
            "infaas_inference_duration_seconds", "The batch's run on the worker", ["variant"], _SECONDS
        )
        self._slo_violations = counter("infaas_slo_violations_total", "Requirements that an answer missed", ["kind"])
        self._dropped = counter("infaas_dropped_total", "Queries dropped unanswered", ["reason"])
        self._batch_size = histogram("infaas_batch_size", "Items per batch", ["variant"], _BATCHES)
        self._decision_duration = histogram(
            "infaas_decision_duration_seconds",
            "Selection of one query; of those chosen for together, their mean",
            [],
            _DECISION_SECONDS,
        )
        self._predicted_error = histogram(
            "infaas_predicted_latency_error_ratio",
            "|observed - predicted| / predicted; answers came `early` or `late`",
            ["direction"],
            _RATIOS,
        )
        self._cold_start = histogram(
            "infaas_cold_start_seconds", "Latency of queries that waited for a load", ["model"], _LOAD_SECONDS
        )
        self._model_load = histogram(
            "infaas_model_load_seconds", "From load command to READY", ["variant"], _LOAD_SECONDS
        )
        self._autoscaler_decisions = counter(
            "infaas_autoscaler_decisions_total",
            "Scaling steps, those held back among them, by whoever leads",
            ["action", "reason"],
        )
        self._bulk_losses = counter(
            "infaas_bulk_losses_total", "Processes for large requests that ended, were stuck or failed", ["reason"]
        )
        self._rested = counter(
            "infaas_connections_rested_total",
            "Connections that were not read for a while because turning their queries away took too long",
            [],
        )
        self._journal_dropped = counter("infaas_journal_dropped_total", "Decisions that the journal could not keep", [])
        self._process_starts = counter(
            "infaas_controller_process_starts_total", "Processes of this controller that were started", []
        )
        self._process_starts.of().inc()
        self._cost_usd = counter("infaas_cost_usd_total", "Measured cost of what was answered", ["variant"])
        self.registry.register(SharedMemoryCollector(SharedMemoryTally(book)))
        build = Gauge("infaas_build_info", "1; what runs here", ["version", "python"], registry=self.registry)
        build.labels(__version__, platform.python_version()).set(1)
        self._ended: dict[tuple[str | None, str | None, Code | None, Priority], _Ended] = {}
        if read_live is not None:
            self.watch(read_live)

    def watch(self, read: Callable[[], Live]) -> None:
        """Derive the gauges from `read`; call once."""
        self.registry.register(LiveCollector(read))

    def observe_request(
        self,
        *,
        model: str | None,
        code: Code | None,
        priority: Priority,
        total_s: float,
        variant: str | None = None,
        queue_s: float | None = None,
        run_s: float | None = None,
        slo_met: bool | None = None,
        is_fallback: bool = False,
        is_cold_start: bool = False,
        cost_usd: float = 0.0,
    ) -> None:
        """One infer request ended, answered (`code` None) or not.

        `model` is the handle if something is registered under it, else None. Called by the edges, for every request
        that reached them, so that malformed ones count as well.
        """
        ended = self._known(model, variant, code, priority)
        ended.requests.cells[0] += 1
        ended.duration.observe(total_s)
        if ended.dropped is not None:
            ended.dropped.cells[0] += 1
        if slo_met is False:
            self._slo_violations.of("latency").inc()
        if is_fallback:
            self._slo_violations.of("accuracy").inc()
        if code is not None:
            return
        if queue_s is not None and ended.queue is not None:
            ended.queue.observe(queue_s)
        if run_s is not None and ended.run is not None:
            ended.run.observe(run_s)
        if cost_usd > 0 and variant:
            self._cost(ended, variant).cells[0] += cost_usd
        if is_cold_start:
            self._cold_start.of(model or UNKNOWN).observe(total_s)

    def observe_turned(self, model: str, code: Code, priority: Priority, *, slo_met: bool | None, count: int) -> None:
        """So many infer requests ended without being read; what they add is what `observe_request` would."""
        ended = self._known(model, None, code, priority)
        ended.requests.cells[0] += count
        ended.duration.observe(0.0, count)
        if ended.dropped is not None:
            ended.dropped.cells[0] += count
        if slo_met is False:
            self._slo_violations.of("latency").inc(count)

    def account(self, model: str | None, variant: str | None, priority: Priority, cost_each: float) -> Account:
        """For usual answers; what they add is what `observe_request` would. `cost_each`: USD for an item."""
        ended = self._known(model, variant, None, priority)
        if cost_each > 0 and variant:
            self._cost(ended, variant)
        return Account(ended, cost_each)

    def own_requests(self) -> Mapping[tuple[str, str | None, Code | None], float]:
        """Queries that this process has seen end, by handle, variant and code; None: answered. Unknown handles are
        left out."""
        found: dict[tuple[str, str | None, Code | None], float] = {}
        for (model, variant, code, _), ended in list(self._ended.items()):
            if model is not None:
                key = model, variant, code
                found[key] = found.get(key, 0.0) + ended.requests.cells[0]
        return found

    def observe_predictions(self, predicted_ms: Sequence[float], observed_ms: Sequence[float]) -> None:
        """How good the predictions of answers' latencies were."""
        pairs = zip(predicted_ms, observed_ms, strict=True)
        errors = [(observed - predicted) / predicted for predicted, observed in pairs if predicted]
        # The sign is a label: OpenMetrics knows no histogram of negative values.
        if late := [error for error in errors if error > 0]:
            self._predicted_error.of("late").observe_each(late)
        if len(late) < len(errors):
            self._predicted_error.of("early").observe_each([-error for error in errors if error <= 0])

    def observe_selections(self, seconds: float, count: int) -> None:
        """So many queries were chosen for, or refused, on arrival, each in that time."""
        self._decision_duration.of().observe(seconds, count)

    def observe_batch(self, variant: str, items: int) -> None:
        self._batch_size.of(variant).observe(items)

    def observe_load(self, variant: str, load_s: float) -> None:
        self._model_load.of(variant).observe(load_s)

    def observe_scaling(self, action: str, cause: str) -> None:
        """`cause` is a word of a closed set (`infaas.domain.action`), and what the label `reason` says."""
        self._autoscaler_decisions.of(action, cause).inc()

    def observe_bulk_loss(self, reason: str) -> None:
        self._bulk_losses.of(reason).inc()

    def observe_rested(self, count: int) -> None:
        self._rested.of().inc(count)

    def observe_journal_drop(self) -> None:
        self._journal_dropped.of().inc()

    @property
    def own_journal_drops(self) -> int:
        """Of this process and of those that were in its place before."""
        return int(self._journal_dropped.of().cells[0])

    @property
    def own_starts(self) -> int:
        """How many processes have been in this one's place, itself included."""
        return int(self._process_starts.of().cells[0])

    def _known(self, model: str | None, variant: str | None, code: Code | None, priority: Priority) -> _Ended:
        key = (model, variant, code, priority)
        ended = self._ended.get(key)
        if ended is None:
            ended = self._ended[key] = self._ended_as(model or UNKNOWN, variant or "", code, priority)
        return ended

    def _cost(self, ended: _Ended, variant: str) -> Count:
        if ended.cost is None:
            ended.cost = self._cost_usd.of(variant)
        return ended.cost

    def _ended_as(self, model: str, variant: str, code: Code | None, priority: Priority) -> _Ended:
        slug = OK if code is None else code.value
        reason = None if code is None else edge_of(code).dropped
        requests = self._requests.of(model, variant, slug, reason or "", priority.value)
        duration = self._request_duration.of(model, slug)
        if code is not None:
            return _Ended(requests, duration, None if reason is None else self._dropped.of(reason))
        if not variant:
            return _Ended(requests, duration, None, self._queue_duration.of(model))
        return _Ended(
            requests,
            duration,
            None,
            self._queue_duration.of(model),
            self._inference_duration.of(variant),
        )


def exposition_app(registry: CollectorRegistry, authorize: Callable[[str | None], None] | None = None) -> AsgiApp:
    """The ASGI application of the metrics port: `GET /metrics`, and nothing else.

    `authorize` gets the `Authorization` header and raises an InfaasError to refuse.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _live_span(receive, send)
            return
        status, headers, body = _answer(registry, authorize, scope)
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    return app


def _answer(
    registry: CollectorRegistry, authorize: Callable[[str | None], None] | None, scope: Scope
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    try:
        if scope["path"] != "/metrics":
            lost = InfaasError(f"unknown path {scope['path']!r}; the metrics are at '/metrics'", code=Code.NOT_FOUND)
            return _refusal(404, lost, [])
        if scope["method"] not in ("GET", "HEAD"):
            return _refusal(405, InfaasError("'/metrics' takes GET", code=Code.INVALID), [(b"allow", b"GET, HEAD")])
        if authorize is not None:
            authorize(sent.get("authorization"))
        encode, content_type = choose_encoder(sent.get("accept", ""))
        return 200, [(b"content-type", content_type.encode())], encode(registry)
    except Exception as exception:
        error = as_error(exception)
        extra = [(b"www-authenticate", b"Bearer")] if error.code is Code.UNAUTHENTICATED else []
        return _refusal(edge_of(error.code).http, error, extra)


def _refusal(
    status: int, error: InfaasError, extra: list[tuple[bytes, bytes]]
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    return status, [(b"content-type", b"application/json"), *extra], error_body(error, None)


async def _live_span(receive: Receive, send: Send) -> None:
    """Nothing to start or stop, but a server asks."""
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
