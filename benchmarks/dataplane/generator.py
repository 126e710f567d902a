"""The load: one process, one event loop, prepared bytes out and as little reading of answers as tells them apart.

A connection has one query on its way. In a closed loop each answer lets the next query go; in an open loop queries
leave by a schedule that nothing moves, on an idle connection or, when all are taken, on the first that becomes idle;
latency counts from the scheduled moment. Whoever's deadline passes before a connection was free has given up and is
not sent at all. There, a connection that the server closed is made again, and one that cannot be made is tried again,
now and then, for as long as queries wait. The generator measures its own processor time, because a generator that is
the bound measures itself.
"""

from __future__ import annotations

import asyncio
import socket
import time
from array import array
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from dataplane.wire import ForeignAnswerError, Kept, answer_length, closes, refusal_of
from infaas.bench.pacer import Pacer

KEEP_EVERY, KEEP_MOST = 64, 256
UNSENT, UNANSWERED = 0, -1
"""Statuses of queries that got none: given up before they could leave, and never answered."""
_FEWEST_S = 0.0002
"""The loop wakes no more often than that for what is due."""
_PATIENCE_S = 5.0
_DIAL_AGAIN_S = 0.01

Address = tuple[str, int]
Connect = Callable[[Callable[["Caller"], None]], Awaitable["Caller"]]
"""Makes one connection, told whom to call when an answer is whole."""


class Caller(Protocol):
    """One connection with one query on its way at most."""

    status: int
    """Of the last answer; `UNANSWERED` when the connection ended instead."""
    question: int
    number: int
    sent_at: float
    failure: Exception | None

    @property
    def is_open(self) -> bool: ...

    def ask(self, question: int, number: int, now: float) -> None: ...

    def content(self) -> bytes:
        """The last answer, whole, as it travelled."""
        ...

    def close(self) -> None: ...


class RestCaller(asyncio.Protocol):
    """HTTP/1.1 with keep-alive. `on_answer` is called with it when an answer is whole."""

    def __init__(self, requests: Sequence[bytes], on_answer: Callable[[Caller], None]) -> None:
        self._requests = requests
        self._on_answer = on_answer
        self._transport: asyncio.Transport | None = None
        self._part = b""
        self._answer = b""
        self._is_waiting = False
        self.failure: Exception | None = None
        self.status = UNANSWERED
        self.question = self.number = 0
        self.sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none of asyncio's classes
        self._transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self, question: int, number: int, now: float) -> None:
        self.question, self.number, self.sent_at = question, number, now
        self._is_waiting = True
        if self._transport is None:
            self._fail(self.failure or ConnectionResetError("the connection was closed"))
            return
        self._transport.write(self._requests[question])

    def data_received(self, data: bytes) -> None:
        if self._part:
            data = self._part + data
        try:
            length = answer_length(data)
        except ForeignAnswerError as error:
            self._fail(error)
            return
        if length is None or len(data) < length:
            self._part = data
            return
        self._part = b""
        self._answer = data
        if len(data) > length:
            self._fail(ForeignAnswerError(f"more than the answer: {data[length : length + 100]!r}"))
            return
        self.status = int(data[9:12])
        self._is_waiting = False
        if closes(data):
            self.close()  # as it said it would
        self._on_answer(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._transport is not None:  # it was not us
            self._transport = None
            self._fail(exc or ConnectionResetError("the server closed the connection"))

    def _fail(self, error: Exception) -> None:
        self.failure = self.failure or error
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        if self._is_waiting:
            self._is_waiting = False
            self.status = UNANSWERED
            self._on_answer(self)

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def content(self) -> bytes:
        return self._answer

    def close(self) -> None:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()


def rest_connect(address: Address, requests: Sequence[bytes]) -> Connect:
    async def connect(on_answer: Callable[[Caller], None]) -> Caller:
        loop = asyncio.get_running_loop()
        _, caller = await loop.create_connection(lambda: RestCaller(requests, on_answer), *address)
        return caller

    return connect


@dataclass(slots=True)
class Closed:
    """What a closed loop saw within its window."""

    seconds: float = 0.0
    statuses: Counter[int] = field(default_factory=Counter)
    latencies_s: array[float] = field(default_factory=lambda: array("d"))
    """Of answers of status 200: what failed has none that counts."""
    kept: list[Kept] = field(default_factory=list)
    cpu_share: float = 0.0
    """Of one core, the generator itself."""
    failure: str = ""

    @property
    def answered(self) -> int:
        return self.statuses[200]


@dataclass(slots=True)
class Open:
    """One entry per query of the schedule; times in seconds since the beginning."""

    due_s: array[float]
    sent_s: array[float]
    ended_s: array[float]
    statuses: array[int]
    reasons: array[int]
    """Of refusals, as positions in `words`."""
    stated_s: array[float]
    """How long refusals took by the server's own account; negative where it does not say."""
    words: list[str] = field(default_factory=lambda: [""])
    kept: list[Kept] = field(default_factory=list)
    cpu_share: float = 0.0
    most_connections: int = 0
    refused_connections: int = 0
    late_p99_s: float = 0.0


class _Keeping:
    def __init__(self, kept: list[Kept]) -> None:
        self._kept = kept
        self._seen = 0

    def answer(self, caller: Caller) -> None:
        self._seen += 1
        if self._seen % KEEP_EVERY == 1 and len(self._kept) < KEEP_MOST:
            self._kept.append(Kept(caller.question, caller.content()))


class _Cpu:
    """The share of a core that this process takes from now on."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def share(self) -> float:
        return (time.process_time() - self._cpu) / max(time.monotonic() - self._wall, 1e-9)


async def closed_loop(
    connect: Connect,
    questions: int,
    *,
    connections: int,
    warm_s: float,
    seconds: float,
    on_edge: Callable[[], Any] | None = None,
) -> Closed:
    """`connections` callers, each with one query on its way, all the time. `on_edge` is called when the window opens
    and when it closes. A connection that fails ends the run with its failure said."""
    seen = Closed()
    keeping = _Keeping(seen.kept)
    clock = time.monotonic
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    is_counting = False
    asked = 0

    def answered(caller: Caller) -> None:
        nonlocal asked
        now = clock()
        if caller.status == UNANSWERED:
            seen.failure = seen.failure or repr(caller.failure)
            if not ended.done():
                ended.set_result(None)
            return
        if is_counting:
            seen.statuses[caller.status] += 1
            if caller.status == 200:
                seen.latencies_s.append(now - caller.sent_at)
                keeping.answer(caller)
        asked += 1
        caller.ask(asked % questions, asked, now)

    callers = [await connect(answered) for _ in range(connections)]
    try:
        for number, caller in enumerate(callers):
            caller.ask(number % questions, number, clock())
        if not await _passed(ended, warm_s):
            return seen
        if on_edge is not None:
            on_edge()
        is_counting, began, cpu = True, clock(), _Cpu()
        await _passed(ended, seconds)
        is_counting = False
        seen.seconds, seen.cpu_share = clock() - began, cpu.share()
        if on_edge is not None:
            on_edge()
    finally:
        for caller in callers:
            caller.close()
    return seen


async def _passed(ended: asyncio.Future[None], seconds: float) -> bool:
    """Whether the time passed without the end coming first."""
    await asyncio.wait({ended}, timeout=seconds)
    return not ended.done()


class OpenLoop:
    """One run of a schedule over as many connections as it takes, up to `most`."""

    def __init__(self, connect: Connect, questions: int, *, deadline_s: float, most: int) -> None:
        self._connect = connect
        self._questions = questions
        self._deadline_s = deadline_s
        self._most = most
        self._idle: list[Caller] = []
        self._callers: list[Caller] = []
        self._waiting: deque[int] = deque()
        self._began = 0.0
        self._on_way = 0
        self._dialing: set[asyncio.Task[None]] = set()
        self._missing = 0
        """Connections that could not be made."""
        self._dial_at = 0.0
        self._quiet: asyncio.Future[None] | None = None

    async def run(self, schedule: Sequence[float]) -> Open:
        """Returns when the last query has ended, or after some patience."""
        count = len(schedule)
        self._seen = seen = Open(
            array("d", schedule),
            array("d", bytes(8 * count)),
            array("d", bytes(8 * count)),
            array("h", bytes(2 * count)),
            array("h", bytes(2 * count)),
            array("d", bytes(8 * count)),
        )
        self._keeping = _Keeping(seen.kept)
        for _ in range(self._most):
            await self._dial()
        cpu = _Cpu()
        try:
            await self._send_all(schedule)
            seen.cpu_share = cpu.share()
            await self._rest()
        finally:
            for caller in self._callers:
                caller.close()
            if self._dialing:
                await asyncio.wait(self._dialing)
        return seen

    async def _dial(self) -> None:
        """One connection more. One that cannot be had is one fewer, as a caller would find it, until it is tried
        again."""
        try:
            caller = await self._connect(self._answered)
        except OSError:
            self._seen.refused_connections += 1
            self._missing += 1
            return
        self._callers.append(caller)
        self._next(caller, time.monotonic())

    def _dial_missing(self, now: float) -> None:
        """All of them, and no more than once in a while, when somebody waits."""
        if self._missing and now >= self._dial_at and self._is_anyone_waiting(now):
            self._dial_at = now + _DIAL_AGAIN_S
            missing, self._missing = self._missing, 0
            for _ in range(missing):
                self._redial()

    def _redial(self) -> None:
        task = asyncio.create_task(self._dial(), name="a connection in the place of a closed one")
        self._dialing.add(task)
        task.add_done_callback(self._dialing.discard)

    async def _send_all(self, schedule: Sequence[float]) -> None:
        clock, at, count = time.monotonic, 0, len(schedule)
        self._began = began = clock() + 0.05
        late: array[float] = array("d")
        with Pacer() as pacer:
            while at < count:
                now = clock()
                wake = began + schedule[at]
                if self._missing and self._is_anyone_waiting(now):
                    wake = min(wake, self._dial_at)
                await pacer.until(max(wake, now + _FEWEST_S))
                now = clock()
                first = at
                while at < count and schedule[at] <= now - began:
                    self._send(at, now)
                    at += 1
                self._dial_missing(now)
                if at > first:
                    late.append(now - began - schedule[first])
        self._seen.late_p99_s = sorted(late)[int(0.99 * (len(late) - 1))] if late else 0.0

    def _send(self, number: int, now: float) -> None:
        while self._idle:
            caller = self._idle.pop()
            if caller.is_open:
                self._launch(caller, number, now)
                return
            self._redial()
        self._waiting.append(number)

    def _launch(self, caller: Caller, number: int, now: float) -> None:
        self._on_way += 1
        self._seen.most_connections = max(self._seen.most_connections, self._on_way)
        self._seen.sent_s[number] = now - self._began
        self._seen.statuses[number] = UNANSWERED
        caller.ask(number % self._questions, number, now)

    def _answered(self, caller: Caller) -> None:
        now = time.monotonic()
        self._on_way -= 1
        self._seen.statuses[caller.number] = caller.status
        self._seen.ended_s[caller.number] = now - self._began
        if caller.status == 200:
            self._keeping.answer(caller)
        elif caller.status != UNANSWERED:
            self._refused(caller)
        if caller.is_open:
            self._next(caller, now)
        else:
            self._redial()
        if not self._on_way and self._quiet is not None and not self._quiet.done():
            self._quiet.set_result(None)

    def _refused(self, caller: Caller) -> None:
        word, self._seen.stated_s[caller.number] = refusal_of(caller.content())
        if word not in self._seen.words:
            self._seen.words.append(word)
        self._seen.reasons[caller.number] = self._seen.words.index(word)

    def _next(self, caller: Caller, now: float) -> None:
        if self._is_anyone_waiting(now):
            self._launch(caller, self._waiting.popleft(), now)
        else:
            self._idle.append(caller)

    def _is_anyone_waiting(self, now: float) -> bool:
        """Whoever's deadline has passed waits no more."""
        oldest = now - self._began - self._deadline_s
        while self._waiting and self._seen.due_s[self._waiting[0]] < oldest:
            self._waiting.popleft()
        return bool(self._waiting)

    async def _rest(self) -> None:
        """What is on its way ends, and who waits for a connection gets one or gives up."""
        end = time.monotonic() + _PATIENCE_S
        while (now := time.monotonic()) < end and (self._on_way or self._is_anyone_waiting(now)):
            self._dial_missing(now)
            self._quiet = asyncio.get_running_loop().create_future()
            left_s = end - now
            await asyncio.wait({self._quiet}, timeout=min(left_s, _DIAL_AGAIN_S) if self._waiting else left_s)
