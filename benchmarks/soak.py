"""A soak: rounds of queries of which 5 % are cancelled and 5 % malformed, and what they leave behind.

    python benchmarks/soak.py [--rounds 50] [--queries 5000] [--json]

Every answer is compared with its input; every malformed request must be refused as the caller's fault. After each
round the system is asked what it still holds, and the processes what they have open. At the end in-flight, queues,
descriptors and threads must be what they were after the rounds that warm it up, and memory within a stated slack.
Exit status 1 when they are not, or when an answer was lost or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
from own_system import SIMPLE_TASK as TASK
from own_system import own_state, register_simple
from prometheus_client.parser import text_string_to_metric_families

from infaas.cli.target import endpoints_of
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.up.record import Endpoints, read_up

CANCELLED, MALFORMED = 0.05, 0.05
REST_CONNECTIONS, GRPC_CALLS = 24, 4
GRPC_SHARE = 0.1
WARM_UP_ROUNDS = 8
DECISION_MEMORY = 250
"""Small enough that the warm-up fills it, refusals too: what grows afterwards is no cache that still fills."""
MEMORY_SLACK_BYTES = 24 * 2**20
"""Of allocators that keep what they freed, and of garbage that waits for the next full collection."""
DESCRIPTOR_SLACK, THREAD_SLACK = 3, 3
"""Reconnections and pools of threads that come and go by themselves."""
PATIENCE_S = 60.0
INPUT_BYTES = 64

_HEAD = json.dumps(
    {
        "inputs": [
            {"name": name, "shape": [1, 16], "datatype": "INT32", "parameters": {"binary_data_size": INPUT_BYTES}}
            for name in ("INPUT0", "INPUT1")
        ],
        "outputs": [{"name": "OUTPUT0", "parameters": {"binary_data": True}}],
    }
).encode()
_LINE = (
    f"POST /v2/models/{TASK}/infer HTTP/1.1\r\nhost: soak\r\ninference-header-content-length: {len(_HEAD)}\r\n"
    f"content-length: {len(_HEAD) + 2 * INPUT_BYTES}\r\n\r\n"
).encode()
_ROW = struct.Struct("<16i")


def _malformed() -> list[tuple[bytes, int, bool]]:
    """What is sent, the status it must get, and whether the connection is over after it."""
    post = f"POST /v2/models/{TASK}/infer HTTP/1.1\r\nhost: soak\r\n"

    def of(body: bytes, *fields: str) -> bytes:
        head = "".join(f"{line}\r\n" for line in (*fields, f"content-length: {len(body)}"))
        return f"{post}{head}\r\n".encode() + body

    return [
        (of(b'{"inputs": ['), 400, False),
        (of(b"[" * 3_000), 400, False),
        (of(_HEAD + bytes(7), f"inference-header-content-length: {len(_HEAD)}"), 400, False),
        (of(_HEAD, "inference-header-content-length: 99999"), 400, False),
        (of(b"{}", "x-infaas-slo-latency-ms: nan"), 400, False),
        (of(b'{"inputs": []}', "x-infaas-latency: 1"), 400, False),
        (of(b"", "x-infaas-slo-accuracy-min: -1"), 400, False),
        (b"POST /v2/models/nothing/infer HTTP/1.1\r\nhost: soak\r\ncontent-length: 0\r\n\r\n", 404, False),
        (b"GARBAGE\r\n\r\n", 400, True),
        (f"{post}content-length: 5\r\ncontent-length: 6\r\n\r\nhello".encode(), 400, True),
        (f"{post}x-long: {'x' * 70_000}\r\n\r\n".encode(), 431, True),
    ]


_BAD = _malformed()


@dataclass(frozen=True)
class Sample:
    """What one process has open and holds."""

    descriptors: int
    threads: int
    memory_bytes: int
    """Private to it (USS)."""


@dataclass
class Report:
    queries: int = 0
    seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    held: dict[str, float] = field(default_factory=dict)
    before: dict[str, Sample] = field(default_factory=dict)
    after: dict[str, Sample] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    """What the end has more of than the beginning, beyond the slack; empty is the goal."""


class Soak:
    """The callers of one round after another; everything that is drawn comes from one seed."""

    def __init__(self, endpoints: Endpoints, seed: int) -> None:
        self._endpoints = endpoints
        self._random = random.Random(seed)
        self._next = 0
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def round(self, call: Any, queries: int) -> None:
        """Every REST connection is closed at its end. `call` is the gRPC method, on the soak's one channel."""
        over_grpc = int(queries * GRPC_SHARE)
        async with asyncio.TaskGroup() as group:
            for share in _shares(queries - over_grpc, REST_CONNECTIONS):
                group.create_task(self._rest_caller(share), name="rest-caller")
            for share in _shares(over_grpc, GRPC_CALLS):
                group.create_task(self._grpc_caller(call, share), name="grpc-caller")

    def _kind(self) -> str:
        draw = self._random.random()
        if draw < CANCELLED:
            return "cancelled"
        return "malformed" if draw < CANCELLED + MALFORMED else "good"

    def _row(self) -> tuple[bytes, int]:
        """A row that no other query of this soak has, and its number."""
        self._next += 1
        return _ROW.pack(*range(self._next, self._next + 16)), self._next

    # REST

    async def _rest_caller(self, queries: int) -> None:
        stream: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        for _ in range(queries):
            if stream is None:
                stream = await asyncio.open_connection(self._endpoints.host, self._endpoints.http_port)
            kind = self._kind()
            async with asyncio.timeout(PATIENCE_S):
                is_open = await getattr(self, f"_rest_{kind}")(*stream)
            self.outcomes[kind] += 1
            if not is_open:
                await _close(stream[1])
                stream = None
        if stream is not None:
            await _close(stream[1])

    async def _rest_good(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        row, number = self._row()
        writer.write(_LINE + _HEAD + row + row)
        status, fields, body = await _answer(reader)
        if status != 200:
            self.wrong.append(f"query {number}: {status} {body[:200]!r}")
        else:
            head = int(fields["inference-header-content-length"])
            self._compare(number, body[head:])
        return fields.get("connection") != "close"

    async def _rest_cancelled(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Gone before the answer: at once, in the middle of the request, or a moment later."""
        row, _ = self._row()
        data = _LINE + _HEAD + row + row
        writer.write(data[: self._random.choice((len(_LINE) // 2, len(data) - 20, len(data)))])
        if self._random.random() < 0.5:
            await writer.drain()
            await asyncio.sleep(0)
        if self._random.random() < 0.3:
            writer.transport.abort()
        return False

    async def _rest_malformed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        data, right, ends = self._random.choice(_BAD)
        writer.write(data)
        status, fields, body = await _answer(reader)
        if status != right:
            self.wrong.append(f"{data[:60]!r}: {status} and not {right}: {body[:200]!r}")
        return not ends and fields.get("connection") != "close"

    # gRPC

    async def _grpc_caller(self, call: Any, queries: int) -> None:
        for _ in range(queries):
            kind = self._kind()
            row, number = self._row()
            message = pb.ModelInferRequest(model_name=TASK, raw_input_contents=[row, row])
            for name in ("INPUT0", "INPUT1"):
                message.inputs.add(name=name, datatype="INT32", shape=[1, 16])
            if kind == "malformed":
                message.inputs[0].shape[0] = -1
            data = message.SerializeToString()
            if kind == "malformed" and self._random.random() < 0.5:
                data = data[:-9]
            await self._grpc_one(call(data, timeout=PATIENCE_S), kind, number)
            self.outcomes[kind] += 1

    async def _grpc_one(self, call: Any, kind: str, number: int) -> None:
        if kind == "cancelled":
            for _ in range(self._random.choice((0, 3))):
                await asyncio.sleep(0)
            call.cancel()
        status = await call.code()
        right = {"cancelled": ("CANCELLED", "OK"), "malformed": ("INVALID_ARGUMENT",), "good": ("OK",)}[kind]
        if status.name not in right:
            self.wrong.append(f"gRPC query {number} ({kind}): {status.name} {await call.details()}")
        elif kind == "good":
            answer = pb.ModelInferResponse.FromString(await call)
            self._compare(number, answer.raw_output_contents[0])

    def _compare(self, number: int, data: bytes) -> None:
        got = _ROW.unpack(data[: _ROW.size]) if len(data) >= _ROW.size else ()
        if got != tuple(2 * value for value in range(number, number + 16)):
            self.wrong.append(f"query {number}: its answer is {got}")


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:] if line)}
    return int(lines[0].split()[1]), fields, await reader.readexactly(int(fields["content-length"]))


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    try:
        await writer.wait_closed()
    except ConnectionError:
        return  # the other side was first


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (1 if n < total % parts else 0) for n in range(parts)]


def held(endpoints: Endpoints) -> dict[str, float]:
    """Gauges of work in the system that are not 0."""
    text = httpx.get(endpoints.metrics_url, timeout=PATIENCE_S).text
    names = ("infaas_in_flight", "infaas_queue_size")
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for metric in text_string_to_metric_families(text)
        if metric.name in names
        for sample in metric.samples
        if sample.value
    }


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
    return {name: _sample(process) for name, process in processes.items()}


def _sample(process: psutil.Process) -> Sample:
    return Sample(process.num_fds(), process.num_threads(), process.memory_full_info().uss)


def programs(state_dir: Path) -> dict[str, psutil.Process]:
    """Every one, Redis and the generator too. One that is started again meanwhile is another process: the soak ends."""
    record = read_up(state_dir)
    if record is None:
        raise SystemExit(f"nothing is up in {state_dir}")
    supervisor = {"supervisor": psutil.Process(record.pid)}
    return supervisor | {one.name: psutil.Process(one.pid) for one in record.programs}


def grown(before: dict[str, Sample], after: dict[str, Sample]) -> list[str]:
    """Every figure that is above its beginning by more than its slack."""
    slack = {"descriptors": DESCRIPTOR_SLACK, "threads": THREAD_SLACK, "memory_bytes": MEMORY_SLACK_BYTES}
    return [
        f"{name}: {figure} {getattr(before[name], figure):,} -> {getattr(after[name], figure):,}"
        for name in after
        for figure, more in slack.items()
        if getattr(after[name], figure) > getattr(before[name], figure) + more
    ]


async def soak(state_dir: Path, rounds: int, queries: int, seed: int, *, is_quiet: bool) -> Report:
    endpoints = endpoints_of(state_dir)
    if endpoints is None:
        raise SystemExit("the controller is gone")
    processes, run, report = programs(state_dir), Soak(endpoints, seed), Report()
    async with grpc.aio.insecure_channel(endpoints.grpc) as channel:
        await channel.channel_ready()
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        quiet = connections(endpoints, processes["controller"])
        began = time.monotonic()
        for number in range(1, WARM_UP_ROUNDS + rounds + 1):
            await run.round(call, queries)
            report.after = await asyncio.to_thread(settled, endpoints, processes, quiet)
            if number == WARM_UP_ROUNDS:
                report.before, began, run.outcomes = report.after, time.monotonic(), Counter()
            if not is_quiet:
                print(f"round {number}/{WARM_UP_ROUNDS + rounds}: {_said(report.after)}; wrong: {len(run.wrong)}")
    report.seconds = round(time.monotonic() - began, 1)
    report.queries, report.outcomes = sum(run.outcomes.values()), dict(run.outcomes)
    report.wrong, report.held = run.wrong[:20], held(endpoints)
    report.left = grown(report.before, report.after)
    return report


def _said(samples: dict[str, Sample]) -> str:
    return ", ".join(
        f"{name} {one.memory_bytes / 2**20:.1f} MiB {one.descriptors} fds {one.threads} threads"
        for name, one in samples.items()
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=50, help=f"counted after {WARM_UP_ROUNDS} that warm up")
    parser.add_argument("--queries", type=int, default=5_000, help="per round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the report as JSON and nothing else")
    chosen = parser.parse_args(arguments)
    os.environ.setdefault("INFAAS_CONTROLLER__DECISION_MEMORY", str(DECISION_MEMORY))
    with own_state(budget_s=0.3) as (client, state_dir):
        register_simple(client)
        report = asyncio.run(soak(state_dir, chosen.rounds, chosen.queries, chosen.seed, is_quiet=chosen.json))
    if chosen.json:
        print(json.dumps(asdict(report)))
    else:
        rate = report.queries / max(report.seconds, 0.001)
        print(f"{report.queries:,} queries in {report.seconds} s ({rate:,.0f}/s): {report.outcomes}")
        print(f"wrong: {report.wrong or 'none'}")
        print(f"still held: {report.held or 'nothing'}; grown: {report.left or 'nothing'}")
    return 1 if report.wrong or report.held or report.left else 0


if __name__ == "__main__":
    sys.exit(main())
