"""A soak: queries of which 10 % are cancelled and 1 % malformed, and what they leave behind.

    python benchmarks/soak.py [--seconds 600 | --rounds N] [--queries 5000] [--json]

Every answer is compared with its input; every malformed request must be refused as the caller's fault. After each
round the system is asked what it still holds, and the processes what they have open. At the end in-flight, queues,
descriptors, threads and the controller's tasks must be what they were after the rounds that warm it up, and memory must
not grow: its slope is the median of the slopes between all pairs of rounds (Theil 1950; Sen, JASA 1968), which single
rounds do not move. Exit status 1 when that is not so, or when an answer was lost or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import grpc
import httpx
import numpy as np
import psutil
from own_system import own_state, register_simple
from prometheus_client.parser import text_string_to_metric_families
from soak_callers import PATIENCE_S, Soak

from infaas.cli.target import endpoints_of
from infaas.up.record import Endpoints, read_up

SECONDS = 600.0
WARM_UP_ROUNDS = 8
DECISION_MEMORY = 250
"""Small enough that the warm-up fills it, refusals too: what grows afterwards is no cache that still fills."""
MEMORY_SLACK_BYTES = 24 * 2**20
"""Growth over a whole run that is not called a leak: allocators keep what they freed, and garbage waits for the next
full collection."""
SLACK = {"descriptors": 3, "threads": 3, "tasks": 3}
"""Reconnections, and pools of threads and tasks of loops that come and go by themselves."""
METHOD = "/inference.GRPCInferenceService/ModelInfer"
OF_WORK = ("infaas_in_flight", "infaas_queue_size", "infaas_queue_bytes", "infaas_queue_tenants")


@dataclass(frozen=True)
class Sample:
    """What one process has open and holds."""

    descriptors: int
    threads: int
    memory_bytes: int
    """Private to it (USS)."""
    tasks: int | None = None
    """Of the event loop, where it says."""


@dataclass(frozen=True)
class Round:
    at_s: float
    """Since the warm-up."""
    samples: dict[str, Sample]


@dataclass
class Report:
    queries: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    held: dict[str, float] = field(default_factory=dict)
    rounds: list[Round] = field(default_factory=list)
    """The first is the end of the warm-up."""
    memory_slope_bytes_per_s: dict[str, float] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    """What the end has more of than the beginning, beyond the slack; empty is the goal."""

    @property
    def is_clean(self) -> bool:
        return not (self.wrong or self.held or self.left)


def slope(times: Sequence[float], values: Sequence[float]) -> float:
    """Per unit of time; 0 of fewer than two."""
    x, y = np.asarray(times, dtype=np.float64), np.asarray(values, dtype=np.float64)
    first, second = np.triu_indices(len(x), 1)
    return float(np.median((y[second] - y[first]) / (x[second] - x[first]))) if len(first) else 0.0


def memory_slopes(rounds: Sequence[Round]) -> dict[str, float]:
    """Bytes per second, by process."""
    times = [one.at_s for one in rounds]
    names = rounds[0].samples if rounds else ()
    return {name: slope(times, [one.samples[name].memory_bytes for one in rounds]) for name in names}


def grown(rounds: Sequence[Round], slopes: Mapping[str, float]) -> list[str]:
    """Every figure that grew by more than its slack."""
    if not rounds:
        return []
    first, last = rounds[0], rounds[-1]
    seconds = last.at_s - first.at_s
    found = [
        f"{name}: memory by {rate * seconds / 2**20:.1f} MiB in {seconds:.0f} s"
        for name, rate in slopes.items()
        if rate * seconds > MEMORY_SLACK_BYTES
    ]
    for name, figure, more in ((name, *one) for name in last.samples for one in SLACK.items()):
        before, after = getattr(first.samples[name], figure), getattr(last.samples[name], figure)
        if before is not None and after is not None and after > before + more:
            found.append(f"{name}: {figure} {before:,} -> {after:,}")
    return found


def gauges(endpoints: Endpoints, *names: str) -> Iterator[tuple[str, float]]:
    """Samples of those metrics that the controller has now, with their labels."""
    text = httpx.get(endpoints.metrics_url, timeout=PATIENCE_S).text
    for metric in text_string_to_metric_families(text):
        if metric.name in names:
            for sample in metric.samples:
                yield f"{sample.name}{sorted(sample.labels.values())}", sample.value


def held(endpoints: Endpoints) -> dict[str, float]:
    """Gauges of work in the system that are not 0."""
    return {name: value for name, value in gauges(endpoints, *OF_WORK) if value}


def connections(endpoints: Endpoints, controller: psutil.Process) -> int:
    """Of callers to the controller's ports for queries."""
    ports = (endpoints.http_port, endpoints.grpc_port)
    found = controller.net_connections("tcp")
    return sum(1 for one in found if one.laddr.port in ports and one.status == psutil.CONN_ESTABLISHED)


def settled(endpoints: Endpoints, processes: dict[str, psutil.Process], quiet: int) -> dict[str, Sample]:
    """What the processes have once nothing is in flight and the callers' connections are gone; waits for that.

    `quiet` is how many connections there are without any caller of a round.
    """
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline and (connections(endpoints, processes["controller"]) > quiet or held(endpoints)):
        time.sleep(0.05)
    tasks = [int(value) for _, value in gauges(endpoints, "infaas_tasks")]
    return {
        name: _sample(process, sum(tasks) if tasks and name == "controller" else None)
        for name, process in processes.items()
    }


def _sample(process: psutil.Process, tasks: int | None) -> Sample:
    return Sample(process.num_fds(), process.num_threads(), process.memory_full_info().uss, tasks)


def programs(state_dir: Path) -> dict[str, psutil.Process]:
    """Every one, Redis and the generator too. One that is started again meanwhile is another process: the soak ends."""
    record = read_up(state_dir)
    if record is None:
        raise SystemExit(f"nothing is up in {state_dir}")
    supervisor = {"supervisor": psutil.Process(record.pid)}
    return supervisor | {one.name: psutil.Process(one.pid) for one in record.programs}


@dataclass(frozen=True)
class Length:
    seconds: float
    rounds: int | None
    """Instead of seconds."""
    queries: int
    """In a round."""

    def is_over(self, rounds: int, seconds: float) -> bool:
        """After so much of it, the warm-up not counted."""
        return seconds >= self.seconds if self.rounds is None else rounds >= self.rounds


async def soak(state_dir: Path, length: Length, seed: int, *, is_quiet: bool) -> Report:
    endpoints = endpoints_of(state_dir)
    if endpoints is None:
        raise SystemExit("the controller is gone")
    processes, run, report = programs(state_dir), Soak(endpoints, seed), Report()
    async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
        await channel.channel_ready()
        call = channel.unary_unary(METHOD)
        quiet = connections(endpoints, processes["controller"])
        began, number = time.monotonic(), 0
        while number < WARM_UP_ROUNDS or not length.is_over(number - WARM_UP_ROUNDS, time.monotonic() - began):
            await run.round(call, length.queries)
            number += 1
            samples = await asyncio.to_thread(settled, endpoints, processes, quiet)
            if number == WARM_UP_ROUNDS:
                began, run.outcomes = time.monotonic(), Counter()
            if number >= WARM_UP_ROUNDS:
                report.rounds.append(Round(time.monotonic() - began, samples))
            if not is_quiet:
                print(f"round {number}: {_said(samples)}; wrong: {len(run.wrong)}", file=sys.stderr, flush=True)
    report.seconds = round(time.monotonic() - began, 1)
    report.queries, report.outcomes = sum(run.outcomes.values()), dict(run.outcomes)
    report.wrong, report.held = run.wrong[:20], held(endpoints)
    report.memory_slope_bytes_per_s = memory_slopes(report.rounds)
    report.left = grown(report.rounds, report.memory_slope_bytes_per_s)
    return report


def _said(samples: dict[str, Sample]) -> str:
    return ", ".join(
        f"{name} {one.memory_bytes / 2**20:.1f} MiB {one.descriptors} fds {one.threads} threads"
        for name, one in samples.items()
    )


def soaked(
    length: Length,
    seed: int,
    *,
    is_quiet: bool,
    place: Callable[[], AbstractContextManager[None]] = nullcontext,
    environ: Mapping[str, str] | None = None,
) -> Report:
    """A system of its own, soaked. `place` holds while its programs are started, with `environ` as their settings."""
    settings = {"INFAAS_CONTROLLER__DECISION_MEMORY": str(DECISION_MEMORY), **(environ or {})}
    with ExitStack() as stack:
        with place():
            client, state_dir = stack.enter_context(own_state(budget_s=0.3, settings=settings))
        register_simple(client)
        return asyncio.run(soak(state_dir, length, seed, is_quiet=is_quiet))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"after {WARM_UP_ROUNDS} rounds that warm up")
    parser.add_argument("--rounds", type=int, help="so many instead")
    parser.add_argument("--queries", type=int, default=5_000, help="per round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the report as JSON and nothing else")
    chosen = parser.parse_args(arguments)
    report = soaked(Length(chosen.seconds, chosen.rounds, chosen.queries), chosen.seed, is_quiet=chosen.json)
    print(json.dumps(asdict(report)) if chosen.json else "\n".join(summary(report)))
    return 0 if report.is_clean else 1


def summary(report: Report) -> list[str]:
    rate = report.queries / max(report.seconds, 0.001)
    slopes = (f"{name} {each * 3_600 / 2**20:+.1f}" for name, each in report.memory_slope_bytes_per_s.items())
    return [
        f"{report.queries:,} queries in {report.seconds} s ({rate:,.0f}/s): {report.outcomes}",
        f"memory, MiB an hour: {', '.join(slopes)}",
        f"wrong: {report.wrong or 'none'}",
        f"still held: {report.held or 'nothing'}; grown: {report.left or 'nothing'}",
        "passed" if report.is_clean else "FAILED",
    ]


if __name__ == "__main__":
    sys.exit(main())
