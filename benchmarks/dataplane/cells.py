"""One cell of a table: one server, one kind of query, one load; and what a run of many cells is made with."""

from __future__ import annotations

import resource
import sys
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import uvloop

from dataplane.figures import Overload, Phase, Refusals, Round, gaps_needed, overload, quantile, two_steps
from dataplane.generator import Closed, Connect, Open, OpenLoop, closed_loop, rest_connect
from dataplane.graphs import INPUT, Model, Prepared, prepare
from dataplane.h2 import grpc_connect
from dataplane.native_load import NativeLoad
from dataplane.own import Edition, System, systems
from dataplane.peers import NULL, CannotStartError, Kit, left_out, peer
from dataplane.servers import BINARY, GRPC, LeftOut, Server, UnreachableError, cpu_s, quiet, wait_answering
from dataplane.wire import grpc_output, requests, rest_output, wrong
from infaas.bench.grpc import query_bytes
from infaas.client_grpc import METHOD

CONNECTIONS = 32
MOST_CONNECTIONS = 2_000
FAR_MS = 10_000
"""A latency objective that no query of a closed loop misses."""
_SPARE_DESCRIPTORS = 256
_START_S = 120.0


@dataclass(frozen=True, slots=True)
class Effort:
    """How long things take."""

    rounds: int
    warm_s: float
    seconds: float
    budget_s: float
    """Of profiling, per variant."""
    offline_s: float
    overload_s: float
    calm_s: float
    """After the overload."""
    soak_s: float
    soak_queries: int
    """In a round."""


FULL = Effort(
    rounds=3, warm_s=1.0, seconds=5.0, budget_s=3.0, offline_s=4.0, overload_s=8.0, calm_s=4.0, soak_s=600.0,
    soak_queries=5_000,
)  # fmt: skip
QUICK = Effort(
    rounds=1, warm_s=0.3, seconds=1.0, budget_s=0.3, offline_s=0.6, overload_s=1.5, calm_s=1.5, soak_s=10.0,
    soak_queries=500,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Run:
    kit: Kit
    effort: Effort
    peers: Sequence[str]
    load: NativeLoad | None
    """None: the load is Python's."""
    variants: int
    """At least so many are registered with each system."""
    settings: Mapping[str, str]
    """Of every edition, on top of its own."""


def own_systems(run: Run, wanted: Sequence[Edition]) -> AbstractContextManager[tuple[list[System], list[LeftOut]]]:
    return systems(wanted, run.kit.pins, budget_s=run.effort.budget_s, variants=run.variants)


@dataclass(frozen=True, slots=True)
class Started:
    prepared: Prepared
    servers: Sequence[Server]
    """Those under test, INFaaS first."""
    null: Server | None
    """Shows what the load could do."""
    left_out: Sequence[LeftOut]
    load: NativeLoad | None

    @property
    def everybody(self) -> list[Server]:
        return [*self.servers, *([] if self.null is None else [self.null])]


@contextmanager
def started(run: Run, model: Model, systems: Sequence[System], peers: Sequence[str]) -> Iterator[Started]:
    """Those systems, those peers and the null server with one model, all on the servers' core; those that cannot be
    are said."""
    folder = run.kit.folder / model.name
    folder.mkdir(exist_ok=True)
    kit = Kit(run.kit.pins, folder, run.kit.cache)
    prepared = prepare(model, folder)
    missing: list[LeftOut] = []
    with ExitStack() as stack:
        servers = [system.serve(prepared) for system in systems]
        for name in ("null", *peers):
            try:
                server = stack.enter_context(peer(name, kit, prepared))
                _wait_answering(server, prepared)
            except CannotStartError as error:
                missing.append(left_out(name, error))
            else:
                servers.append(server)
        null = next((server for server in servers if server.name == NULL), None)
        yield Started(prepared, [one for one in servers if one is not null], null, missing, run.load)


def _wait_answering(server: Server, prepared: Prepared) -> None:
    """Raises CannotStartError."""
    if server.rest:
        request = requests(prepared, server.path, is_binary=BINARY in server.rest, headers={})[0]
        try:
            wait_answering(server.address, request, _START_S)
        except TimeoutError as error:
            raise CannotStartError(str(error)) from error


def slo(latency_ms: float) -> dict[str, str]:
    """On every query, to peers too: the bytes are the same."""
    return {
        "x-infaas-slo-latency-ms": f"{latency_ms:g}",
        "x-infaas-slo-accuracy-min": "0.9",
        "x-infaas-objective": "cost",
    }


def rest_requests(server: Server, prepared: Prepared, kind: str, headers: Mapping[str, str]) -> list[bytes]:
    return requests(prepared, server.path, is_binary=kind == BINARY, headers=headers)


def _grpc(server: Server, prepared: Prepared, headers: Mapping[str, str]) -> Connect:
    assert server.grpc is not None
    messages = [query_bytes(prepared.model.name, {INPUT: row[np.newaxis]}) for row in prepared.questions]
    return grpc_connect(server.grpc, METHOD, messages, headers)


def closed(
    started: Started,
    server: Server,
    kind: str,
    effort: Effort,
    *,
    connections: int = CONNECTIONS,
) -> Round:
    """Raises UnreachableError for a broken connection or no result at all, and SystemExit for a wrong answer: there is
    no rate of those."""
    prepared = started.prepared
    programs = server.programs()
    edges: list[dict[str, float]] = []
    with quiet(started.everybody, server):
        seen = _closed_loop(started, server, kind, effort, connections, lambda: edges.append(cpu_s(programs)))
    where = f"{server.name}, {kind}"
    if seen.failure:
        raise UnreachableError(f"{where}: a connection ended: {seen.failure}")
    if not seen.answered:
        raise UnreachableError(f"{where}: not one result; {dict(seen.statuses) or 'nothing'} instead")
    is_checked = server is not started.null  # whose answers are none
    if is_checked and (bad := wrong(seen.kept, prepared.answers, grpc_output if kind == GRPC else rest_output)):
        raise SystemExit(f"{where}: {len(bad)} of {len(seen.kept)} answers that were looked at are wrong: {bad[0]}")
    tell(f"{prepared.model.name}: {where}, {connections} connections: {seen.answered / seen.seconds:,.0f}/s")
    return Round(
        rate=seen.answered / seen.seconds,
        programs_cpu_s=_between(*edges),
        generator_share=seen.cpu_share,
        answered=seen.answered,
        failed=seen.statuses.total() - seen.answered,
        p50_s=quantile(seen.latencies_s, 0.5),
        p95_s=quantile(seen.latencies_s, 0.95),
    )


def _closed_loop(
    started: Started, server: Server, kind: str, effort: Effort, connections: int, on_edge: Callable[[], Any]
) -> Closed:
    prepared = started.prepared
    window: dict[str, Any] = {
        "connections": connections, "warm_s": effort.warm_s, "seconds": effort.seconds, "on_edge": on_edge
    }  # fmt: skip
    if kind == GRPC:
        connect = _grpc(server, prepared, slo(FAR_MS))
        return uvloop.run(closed_loop(connect, len(prepared.questions), **window))
    asked = rest_requests(server, prepared, kind, slo(FAR_MS))
    if started.load is not None:
        return started.load.closed(server.address, asked, **window)
    return uvloop.run(closed_loop(rest_connect(server.address, asked), len(asked), **window))


def null_rate(started: Started, kind: str, effort: Effort, *, connections: int = CONNECTIONS) -> float | None:
    """Answers per second of the null server to the same queries; None where there is none, or of that kind."""
    null = started.null
    if null is None or not null.understands(kind):
        return None
    return closed(started, null, kind, effort, connections=connections).rate


@dataclass(frozen=True, slots=True)
class OpenCell:
    overload: Overload
    programs_cpu_s: Mapping[str, float]
    """Of the server's programs, over the whole run."""
    generator_share: float
    late_p99_s: float
    """How late the load came to what was due."""
    connections: int
    """At most on their way at one time."""
    refused_connections: int


@dataclass(frozen=True, slots=True)
class Steps:
    """A load of two rates, one after the other."""

    rate: float
    seconds: float
    calm_rate: float
    calm_s: float

    def schedule(self, seed: int) -> list[float]:
        gaps = np.random.default_rng(seed).exponential(
            size=gaps_needed(self.rate, self.seconds, self.calm_rate, self.calm_s)
        )
        at: list[float] = two_steps(
            gaps, rate=self.rate, seconds=self.seconds, later_rate=self.calm_rate, later_seconds=self.calm_s
        ).tolist()
        return at


def opened(started: Started, server: Server, kind: str, load: Steps, deadline_s: float, seed: int) -> OpenCell:
    """A Poisson load of one rate and then, for a while, of another; its first second warms up and is not counted."""
    prepared = started.prepared
    schedule = load.schedule(seed)
    asked = rest_requests(server, prepared, kind, slo(deadline_s * 1e3))
    programs = server.programs()
    with quiet(started.everybody, server):
        before = cpu_s(programs)
        seen = _open_loop(started, server, asked, schedule, deadline_s)
        used = _between(before, cpu_s(programs))
    if bad := wrong(seen.kept, prepared.answers):
        raise SystemExit(
            f"{server.name}: {len(bad)} of {len(seen.kept)} answers that were looked at are wrong: {bad[0]}"
        )
    found = overload(
        _array(seen.due_s), _array(seen.sent_s), _array(seen.ended_s), _shorts(seen.statuses),
        Refusals(_shorts(seen.reasons), seen.words, _array(seen.stated_s)),
        Phase(min(1.0, load.seconds / 4), load.seconds), deadline_s,
    )  # fmt: skip
    tell(f"{prepared.model.name}: {server.name}, offered {load.rate:,.0f}/s: {found.on_time_per_s:,.0f}/s on time")
    return OpenCell(found, used, seen.cpu_share, seen.late_p99_s, seen.most_connections, seen.refused_connections)


def _open_loop(
    started: Started, server: Server, asked: Sequence[bytes], schedule: Sequence[float], deadline_s: float
) -> Open:
    most = _connections()
    if started.load is not None:
        return started.load.opened(server.address, asked, schedule, deadline_s=deadline_s, most=most)
    loop = OpenLoop(rest_connect(server.address, asked), len(asked), deadline_s=deadline_s, most=most)
    return uvloop.run(loop.run(schedule))


def _between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in before}


def _array(values: array[float]) -> npt.NDArray[np.float64]:
    return np.frombuffer(values, dtype=np.float64)


def _shorts(values: array[int]) -> npt.NDArray[np.int16]:
    return np.frombuffer(values, dtype=np.int16)


def _connections() -> int:
    """As many as this process may have, up to what is wanted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_CONNECTIONS + _SPARE_DESCRIPTORS
    if soft < wanted:
        soft = min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(MOST_CONNECTIONS, soft - _SPARE_DESCRIPTORS)


def tell(text: str) -> None:
    """Progress, beside the tables."""
    print(text, file=sys.stderr, flush=True)
