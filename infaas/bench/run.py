"""One run, from what was asked for to its report: connect, warm up, send, and sum up."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

import infaas
from infaas.bench.grpc import GrpcChannels
from infaas.bench.journal import Columns, Journal
from infaas.bench.kept import KeptAnswers
from infaas.bench.loops import Ask, Loops
from infaas.bench.mixes import MixDraw, RequirementSet
from infaas.bench.protocol import Protocol
from infaas.bench.queries import Prepared, Rows, scorer
from infaas.bench.report import BenchReport, Facts, Score, answering_s, set_reports
from infaas.bench.rest import RestPool
from infaas.bench.schedule import rate_of
from infaas.bench.self_watch import SelfWatch
from infaas.bench.verdict import Generator, findings
from infaas.clock import SystemClock, iso
from infaas.domain.tensor import TensorSpec
from infaas.errors import InvalidError
from infaas.metrics import Metric

ShowStop = Callable[[Callable[[], None]], None]


class Interrupted(Exception):
    """A run was ended before anything of it was measured."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send. With a schedule the loop is open, else `callers` ask one query after the other."""

    handle: str
    url: str
    rows: Rows
    sets: Sequence[RequirementSet]
    protocol: Protocol = Protocol.REST_BINARY
    grpc_target: str | None = None
    token: str | None = None
    schedule: Sequence[float] | None = None
    callers: int = 1
    seconds: float | None = None
    count: int | None = None
    warm_up_s: float = 0.0
    connections: int = 1_024
    patience_s: float = 60.0
    seed: int = 1
    prices: Mapping[str, float] = field(default_factory=dict)
    """USD per 1,000 rows, by variant."""
    metric: Metric | None = None
    """How answers are scored; None: they are not."""
    outputs: Sequence[TensorSpec] = ()
    parameters: Mapping[str, object] = field(default_factory=dict)
    """As the user stated them, for the report."""
    server_version: str = "unknown"


async def bench(plan: Plan, show_stop: ShowStop) -> BenchReport:
    """`show_stop` is given what ends the run before its time; the report is then of what was sent until there.

    While the run warms up it is given something that ends that: then Interrupted is raised, for there is nothing to
    report.
    """
    prepared = Prepared(plan.handle, plan.rows, plan.sets, plan.protocol, plan.token, plan.url)
    prepared.prepare()
    wire, ask = _wire(plan, prepared)
    try:
        if plan.warm_up_s:
            await _warm_up(plan, ask, show_stop)
        is_scored = plan.metric is not None and bool(plan.rows.expected)
        journal = Journal(KeptAnswers(plan.rows.slots, seed=plan.seed) if is_scored else None)
        loops = Loops(ask, journal, _mix(plan), patience_s=plan.patience_s)
        show_stop(loops.stop)
        began_at, watch = iso(SystemClock().wall()), SelfWatch()
        watching = asyncio.create_task(watch.run(), name="watch")
        try:
            await _send(loops, plan)
        finally:
            watching.cancel()
            await asyncio.wait({watching})
    finally:
        await wire.close()
    columns = journal.columns()
    late_s = columns.sent_s - columns.due_s if plan.schedule is not None else np.zeros(0)
    own = watch.seen(late_s, wire.waited, plan.connections)
    return _report(plan, journal, columns, own, began_at, is_stopped=loops.is_stopped)


class _RestWire:
    def __init__(self, plan: Plan, prepared: Prepared) -> None:
        self._pool = RestPool(plan.url, most=plan.connections)
        self.ask: Ask = lambda number, mix: self._pool.ask(prepared.query(number, mix))

    @property
    def waited(self) -> int:
        return self._pool.waited

    async def close(self) -> None:
        self._pool.close()


class _GrpcWire:
    waited = 0

    def __init__(self, target: str, prepared: Prepared) -> None:
        self._channels = GrpcChannels(target)
        self.ask: Ask = lambda number, mix: self._channels.ask(prepared.query(number, mix), prepared.metadata[mix])

    async def close(self) -> None:
        await self._channels.close()


def _wire(plan: Plan, prepared: Prepared) -> tuple[_RestWire | _GrpcWire, Ask]:
    if plan.protocol is not Protocol.GRPC:
        rest = _RestWire(plan, prepared)
        return rest, rest.ask
    if plan.grpc_target is None:
        raise InvalidError("gRPC needs a target, host:port")
    over_grpc = _GrpcWire(plan.grpc_target, prepared)
    return over_grpc, over_grpc.ask


def _mix(plan: Plan) -> MixDraw:
    return MixDraw(plan.sets, plan.seed)


async def _warm_up(plan: Plan, ask: Ask, show_stop: ShowStop) -> None:
    loops = Loops(ask, Journal(), _mix(plan), patience_s=plan.patience_s)
    show_stop(loops.stop)
    await loops.closed_loop(min(plan.callers, 2), seconds=plan.warm_up_s, count=None)
    if loops.is_stopped:
        raise Interrupted


def _send(loops: Loops, plan: Plan) -> Awaitable[None]:
    if plan.schedule is not None:
        return loops.open_loop(plan.schedule)
    return loops.closed_loop(plan.callers, seconds=plan.seconds, count=plan.count)


def _score(plan: Plan, journal: Journal) -> Score:
    if journal.kept is None or plan.metric is None:
        return lambda mix: None
    return scorer(plan.rows, journal.kept, plan.protocol, plan.metric, plan.outputs)


def _report(
    plan: Plan, journal: Journal, columns: Columns, own: Generator, began_at: str, *, is_stopped: bool
) -> BenchReport:
    facts = Facts(journal.codes, journal.variants, plan.prices, plan.rows.batch, _score(plan, journal))
    sets, total = set_reports(columns, plan.sets, facts)
    answered = columns.code == 0
    took_s = (columns.ended_s - columns.due_s)[answered]
    p50_s = float(np.median(took_s)) if took_s.size else None
    notes = []
    if journal.kept is not None and journal.kept.unkept:
        notes.append(f"the answers to {journal.kept.unkept} distinct queries are not scored: too large to be kept")
    schedule = plan.schedule
    return BenchReport(
        handle=plan.handle,
        began_at=began_at,
        parameters=plan.parameters,
        versions={
            "infaas": infaas.__version__,
            "server": plan.server_version,
            "python": platform.python_version(),
            "numpy": np.__version__,
            "platform": platform.platform(),
        },
        seconds=float(columns.ended_s.max()) if len(columns.ended_s) else 0.0,
        answering_s=answering_s(columns, journal.codes),
        offered=rate_of(schedule) if schedule is not None else None,
        generator=own,
        findings=findings(own, is_open=schedule is not None, p50_s=p50_s, is_stopped=is_stopped),
        sets=sets,
        notes=tuple(notes),
        total=total,
    )
