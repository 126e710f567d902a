"""One cell of a table: one server, one kind of query, one load; and what a run of many cells is made with."""

from __future__ import annotations

import resource
import sys
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import uvloop

from dataplane.figures import Overload, Phase, Round, gaps_needed, overload, quantile, two_steps
from dataplane.generator import Connect, OpenLoop, closed_loop, rest_connect
from dataplane.graphs import INPUT, Model, Prepared, prepare
from dataplane.h2 import grpc_connect
from dataplane.own import own
from dataplane.peers import CannotStartError, Kit, left_out, peer
from dataplane.servers import INFAAS, LeftOut, Server, cpu_s, quiet, wait_answering
from dataplane.wire import grpc_output, requests, rest_output, wrong
from infaas.bench.grpc import query_bytes
from infaas.client_grpc import METHOD

JSON, BINARY, GRPC = "JSON", "binary", "gRPC"
CONNECTIONS = 32
MOST_CONNECTIONS = 2_000
FAR_MS = 10_000
"""A latency objective that no query of a closed loop misses."""
_SPARE_DESCRIPTORS = 256
_START_S = 30.0


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


FULL = Effort(rounds=3, warm_s=1.0, seconds=5.0, budget_s=3.0, offline_s=4.0, overload_s=8.0, calm_s=4.0)
QUICK = Effort(rounds=1, warm_s=0.3, seconds=1.0, budget_s=0.3, offline_s=0.6, overload_s=1.5, calm_s=1.5)


@dataclass(frozen=True, slots=True)
class Run:
    kit: Kit
    effort: Effort
    peers: Sequence[str]
    has_crowd: bool


@dataclass(frozen=True, slots=True)
class Started:
    prepared: Prepared
    servers: Sequence[Server]
    left_out: Sequence[LeftOut]


@contextmanager
def started(run: Run, model: Model, peers: Sequence[str]) -> Iterator[Started]:
    """INFaaS and those peers with one model, all on the servers' core; those that cannot be are said."""
    folder = run.kit.folder / model.name
    folder.mkdir(exist_ok=True)
    kit = Kit(run.kit.pins, folder, run.kit.environment)
    prepared = prepare(model, folder)
    missing: list[LeftOut] = []
    with ExitStack() as stack:
        servers = [stack.enter_context(own(prepared, kit.pins, budget_s=run.effort.budget_s, has_crowd=run.has_crowd))]
        try:
            _wait_answering(servers[0], prepared)
        except CannotStartError as error:
            raise SystemExit(f"{INFAAS} does not serve {model.name}: {error}") from error
        for name in peers:
            try:
                server = stack.enter_context(peer(name, kit, prepared))
                _wait_answering(server, prepared)
            except CannotStartError as error:
                missing.append(left_out(name, error))
            else:
                servers.append(server)
        yield Started(prepared, servers, missing)


def _wait_answering(server: Server, prepared: Prepared) -> None:
    """Raises CannotStartError."""
    if server.has_rest:
        try:
            wait_answering(server.address, requests(prepared, server.path, is_binary=True, headers={})[0], _START_S)
        except TimeoutError as error:
            raise CannotStartError(str(error)) from error


def slo(latency_ms: float) -> dict[str, str]:
    """On every query, to peers too: the bytes are the same."""
    return {
        "x-infaas-slo-latency-ms": f"{latency_ms:g}",
        "x-infaas-slo-accuracy-min": "0.9",
        "x-infaas-objective": "cost",
    }


def understands(server: Server, kind: str) -> bool:
    return server.grpc is not None if kind == GRPC else server.has_rest


def connect(server: Server, prepared: Prepared, kind: str, headers: Mapping[str, str]) -> Connect:
    if kind == GRPC:
        assert server.grpc is not None
        messages = [query_bytes(prepared.model.name, {INPUT: row[np.newaxis]}) for row in prepared.questions]
        return grpc_connect(server.grpc, METHOD, messages, headers)
    return rest_connect(server.address, requests(prepared, server.path, is_binary=kind == BINARY, headers=headers))


def closed(
    started: Started,
    server: Server,
    kind: str,
    effort: Effort,
    *,
    connections: int = CONNECTIONS,
    is_checked: bool = True,
) -> Round:
    """Raises SystemExit for a wrong answer or a broken connection: there is no rate of those."""
    prepared = started.prepared
    programs = server.programs()
    edges: list[dict[str, float]] = []
    with quiet(started.servers, server):
        seen = uvloop.run(
            closed_loop(
                connect(server, prepared, kind, slo(FAR_MS)), len(prepared.questions), connections=connections,
                warm_s=effort.warm_s, seconds=effort.seconds, on_edge=lambda: edges.append(cpu_s(programs)),
            )
        )  # fmt: skip
    where = f"{server.name}, {kind}"
    if seen.failure:
        raise SystemExit(f"{where}: a connection ended: {seen.failure}")
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


def opened(
    started: Started, server: Server, rate: float, calm_rate: float, effort: Effort, deadline_s: float, seed: int
) -> OpenCell:
    """A Poisson load of `rate` and then, for a while, of `calm_rate`; its first second warms up and is not counted."""
    prepared = started.prepared
    schedule = _schedule(rate, effort.overload_s, calm_rate, effort.calm_s, seed)
    programs = server.programs()
    loop = OpenLoop(
        connect(server, prepared, BINARY, slo(deadline_s * 1e3)), len(prepared.questions),
        deadline_s=deadline_s, most=_connections(),
    )  # fmt: skip
    before = cpu_s(programs)
    with quiet(started.servers, server):
        seen = uvloop.run(loop.run(schedule))
    if bad := wrong(seen.kept, prepared.answers):
        raise SystemExit(
            f"{server.name}: {len(bad)} of {len(seen.kept)} answers that were looked at are wrong: {bad[0]}"
        )
    found = overload(
        _array(seen.due_s), _array(seen.sent_s), _array(seen.ended_s), np.asarray(seen.statuses, dtype=np.int16),
        Phase(min(1.0, effort.overload_s / 4), effort.overload_s), deadline_s,
    )  # fmt: skip
    tell(f"{prepared.model.name}: {server.name}, offered {rate:,.0f}/s: {found.on_time_per_s:,.0f}/s on time")
    return OpenCell(
        found,
        _between(before, cpu_s(programs)),
        seen.cpu_share,
        seen.late_p99_s,
        seen.most_connections,
        seen.refused_connections,
    )


def _between(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in before}


def _schedule(rate: float, seconds: float, calm_rate: float, calm_s: float, seed: int) -> list[float]:
    gaps = np.random.default_rng(seed).exponential(size=gaps_needed(rate, seconds, calm_rate, calm_s))
    made: list[float] = two_steps(gaps, rate=rate, seconds=seconds, later_rate=calm_rate, later_seconds=calm_s).tolist()
    return made


def _array(values: array[float]) -> npt.NDArray[np.float64]:
    return np.frombuffer(values, dtype=np.float64)


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
