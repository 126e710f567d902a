"""One million small queries, every answer held against its input: none lost, none mixed up, none twice.

    python benchmarks/million.py [--queries 1000000] [--cancelled 0.01] [--seed 1] [--json]

Over REST (binary tensors, several queries at once on each connection) and gRPC, against a system of its own. The model
gives sum and difference of its two inputs, so an answer tells both of them, and no two queries have the same. Every
query has an id of its own, which must come back with its answer. Some are taken back while they are on their way, by
breaking the connection or cancelling the call; these come on top and are not counted. At the end the controller must
have served each query once: as many as were answered, and of those taken back at most all.
Exit status 1 when anything of that does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import httpx
import numpy as np
import numpy.typing as npt
import uvloop
from own_system import SIMPLE_TASK as TASK
from own_system import own_state, register_simple
from soak import held
from soak_callers import PATIENCE_S

from infaas.bench import grpc, rest
from infaas.bench.reply import OK, Reply
from infaas.cli.target import endpoints_of
from infaas.client import Client
from infaas.up.record import Endpoints

REST_CONNECTIONS, REST_DEPTH = 12, 8
GRPC_CALLERS, GRPC_CHANNELS = 12, 3
GRPC_SHARE = 0.2
MOST_ROWS = 4
SAID_EVERY_S = 10.0
MOST_WRONG_SAID = 20

Ints = npt.NDArray[np.int32]


@dataclass
class Report:
    wanted: int = 0
    queries: int = 0
    """Answered, and checked."""
    rows: int = 0
    seconds: float = 0.0
    taken_back: int = 0
    """On their way, without an answer that was read; on top of the others."""
    lost: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    mixed_up: list[str] = field(default_factory=list)
    twice: list[str] = field(default_factory=list)
    unasked: int = 0
    """Answers on a connection that nobody waited for."""
    served: int = 0
    """By the controller's own count."""
    held: dict[str, float] = field(default_factory=dict)
    """What the controller still holds at the end."""

    @property
    def is_whole(self) -> bool:
        wrong = self.lost or self.refused or self.mixed_up or self.twice or self.unasked or self.held
        return not wrong and self.wanted == self.queries <= self.served <= self.queries + self.taken_back


@dataclass(frozen=True)
class Question:
    number: int
    rows: int

    @property
    def id(self) -> str:
        return f"million-{self.number}"

    def inputs(self) -> dict[str, Ints]:
        at = np.arange(16 * self.rows, dtype=np.int32).reshape(self.rows, 16)
        return {"INPUT0": at + np.int32(64 * self.number), "INPUT1": np.int32(3 * self.number) - 5 * at}

    def is_answered_by(self, outputs: dict[str, Ints]) -> bool:
        asked = self.inputs()
        return np.array_equal(outputs["OUTPUT0"], asked["INPUT0"] + asked["INPUT1"]) and np.array_equal(
            outputs["OUTPUT1"], asked["INPUT0"] - asked["INPUT1"]
        )


class Million:
    """The callers of one run. A query is counted when its answer has been checked."""

    def __init__(self, endpoints: Endpoints, queries: int, cancelled: float, seed: int) -> None:
        self._endpoints = endpoints
        self._queries = queries
        self._cancelled = cancelled
        self._random = random.Random(seed)
        self._next = 0
        self._answers: dict[int, int] = {}
        """How many answers each query got that has one."""
        self.report = Report(wanted=queries)

    async def run(self, *, is_quiet: bool) -> Report:
        over_grpc = int(self._queries * GRPC_SHARE)
        began = time.monotonic()
        channels = grpc.GrpcChannels(self._endpoints.grpc, channels=GRPC_CHANNELS)
        telling = asyncio.create_task(self._tell(began, is_quiet), name="progress")
        try:
            async with asyncio.TaskGroup() as group:
                for number, share in enumerate(_shares(self._queries - over_grpc, REST_CONNECTIONS)):
                    group.create_task(self._rest_caller(share), name=f"rest-{number}")
                for number, share in enumerate(_shares(over_grpc, GRPC_CALLERS)):
                    group.create_task(self._grpc_caller(channels, share), name=f"grpc-{number}")
        finally:
            telling.cancel()
            await asyncio.wait({telling})
            await channels.close()
        self.report.seconds = round(time.monotonic() - began, 1)
        self.report.twice = [f"{n}: {count}" for n, count in self._answers.items() if count != 1][:MOST_WRONG_SAID]
        return self.report

    async def _tell(self, began: float, is_quiet: bool) -> None:
        while not is_quiet:
            await asyncio.sleep(SAID_EVERY_S)
            done, took_s = self.report.queries, time.monotonic() - began
            bad = sum(map(len, (self.report.lost, self.report.refused, self.report.mixed_up)))
            print(
                f"{done:,} of {self._queries:,} after {took_s:.0f} s ({done / took_s:,.0f}/s); wrong: {bad}", flush=True
            )

    def _ask(self) -> Question:
        self._next += 1
        return Question(self._next, self._random.randint(1, MOST_ROWS))

    # REST: the answers of a connection come in the order of its queries

    async def _rest_caller(self, share: int) -> None:
        left = share
        while left > 0:
            host, port = self._endpoints.host, self._endpoints.http_port
            _, connection = await asyncio.get_running_loop().create_connection(rest.Connection, host, port)
            left -= await self._on(connection, left)
            self.report.unasked += connection.unasked
            connection.abort()

    async def _on(self, connection: rest.Connection, share: int) -> int:
        """Until `share` queries are answered or the connection is given up, with all that is on its way then."""
        asked: deque[tuple[Question, asyncio.Future[Reply]]] = deque()
        done = 0
        while done < share:
            while len(asked) < min(REST_DEPTH, share - done):
                question = self._ask()
                headers = {"x-request-id": question.id}
                asked.append((question, connection.ask(rest.query_bytes(TASK, question.inputs(), headers))))
            if self._random.random() < self._cancelled / REST_DEPTH:
                return done + self._take_back(connection, asked)
            question, future = asked.popleft()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    self._check(question, await future, rest.outputs_of)
            except (TimeoutError, OSError) as error:
                # What came after it on this connection cannot be told from it any more: all are lost.
                self.report.lost += [f"{one.id}: {error!r}" for one, _ in ((question, future), *asked)]
                _forget(asked)
                return done + 1 + len(asked)
            done += 1
        return done

    def _take_back(self, connection: rest.Connection, asked: deque[tuple[Question, asyncio.Future[Reply]]]) -> int:
        """Those that are answered already count."""
        answered = [(question, future) for question, future in asked if future.done() and not future.exception()]
        for question, future in answered:
            self._check(question, future.result(), rest.outputs_of)
        self.report.taken_back += len(asked) - len(answered)
        connection.abort()
        _forget(asked)
        return len(answered)

    # gRPC

    async def _grpc_caller(self, channels: grpc.GrpcChannels, share: int) -> None:
        left = share
        while left > 0:
            question = self._ask()
            metadata = (("x-request-id", question.id),)
            call = asyncio.create_task(
                channels.ask(grpc.query_bytes(TASK, question.inputs()), metadata), name=question.id
            )
            if self._random.random() < self._cancelled:
                for _ in range(self._random.choice((1, 3, 30))):
                    await asyncio.sleep(0)
                call.cancel()
                await asyncio.wait({call})
                if call.cancelled() or call.result().code == "cancelled":
                    self.report.taken_back += 1
                    continue
            left -= 1
            try:
                async with asyncio.timeout(PATIENCE_S):
                    self._check(question, await call, grpc.outputs_of)
            except TimeoutError as error:
                self.report.lost.append(f"{question.id}: {error!r}")

    def _check(self, question: Question, reply: Reply, outputs_of: rest.OutputsOf) -> None:
        if reply.code != OK:
            self.report.refused.append(f"{question.id}: {reply.code} {reply.content[:200]!r}")
            return
        self.report.queries += 1
        self.report.rows += question.rows
        self._answers[question.number] = self._answers.get(question.number, 0) + 1
        said = reply.fields.get("x-request-id")
        if said != question.id or not question.is_answered_by(outputs_of(reply)):
            self.report.mixed_up.append(f"{question.id} has an answer of {said}")


def _forget(asked: deque[tuple[Question, asyncio.Future[Reply]]]) -> None:
    for _, future in asked:
        if not future.cancel():
            future.exception()  # seen, and told by whoever counted it


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (1 if n < total % parts else 0) for n in range(parts)]


def served(client: Client) -> int:
    """Queries of the task that the controller has answered since it began, whether or not anybody read it."""
    stats = httpx.get(f"{client.url}/v2/models/{TASK}/stats", timeout=PATIENCE_S).json()["model_stats"]
    return sum(int(one["inference_stats"]["success"]["count"]) for one in stats if one["name"] == TASK)


def settled(client: Client, endpoints: Endpoints) -> dict[str, float]:
    """What the controller holds once it has had time to notice who has left."""
    deadline = time.monotonic() + PATIENCE_S
    while (found := held(endpoints)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--queries", type=int, default=1_000_000, help="answered ones")
    parser.add_argument("--cancelled", type=float, default=0.01, help="share that is taken back, on top")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print the report as JSON and nothing else")
    chosen = parser.parse_args(arguments)
    with own_state(budget_s=0.3) as (client, state_dir):
        register_simple(client)
        endpoints = endpoints_of(state_dir)
        if endpoints is None:
            raise SystemExit("the controller is gone")
        before = served(client)
        million = Million(endpoints, chosen.queries, chosen.cancelled, chosen.seed)
        report = uvloop.run(million.run(is_quiet=chosen.json))
        report.held = settled(client, endpoints)
        report.served = served(client) - before
    if chosen.json:
        print(json.dumps({**asdict(report), "is_whole": report.is_whole}))
    else:
        rate = report.queries / max(report.seconds, 0.001)
        print(f"{report.queries:,} queries ({report.rows:,} rows) answered in {report.seconds} s ({rate:,.0f}/s)")
        print(f"taken back on their way: {report.taken_back:,}; served by the controller's count: {report.served:,}")
        for word in ("lost", "refused", "mixed_up", "twice"):
            wrong = getattr(report, word)
            print(f"{word.replace('_', ' ')}: {len(wrong)} {wrong[:MOST_WRONG_SAID] if wrong else ''}".rstrip())
        print(f"unasked answers: {report.unasked}; still held: {report.held or 'nothing'}")
    return 0 if report.is_whole else 1


if __name__ == "__main__":
    sys.exit(main())
