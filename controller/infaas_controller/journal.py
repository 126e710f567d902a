"""Writes decisions into the catalogue behind the query path's back: refusals, and a sample of the rest.

A query never waits for the journal. What it cannot take (its queue is bounded) is dropped, counted and, now and then,
said in the log.

A decision is kept with its candidates, so that `explain` says the same when the memory has forgotten it: the first
ones that say most, and how many more there were. They are made when a batch is written, off the event loop; of a flood
of refusals only so many a second carry them, because making and compressing them takes ten times as long as the rest,
and only so many are written one by one.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NoReturn

import msgspec

from infaas.catalog.catalog import Catalog
from infaas.clock import Clock, SystemClock
from infaas.domain.query import ANSWERED, Code, Decision
from infaas.errors import InfaasError, UnavailableError
from infaas.observe.log import get_logger
from infaas_controller.decisions import Trace

MAX_CANDIDATES = 32
"""Kept of each decision."""
CANDIDATES_PER_S = 50
"""Decisions a second that are kept with candidates."""
ALIKE_AT_ONCE = 100
"""Refusals of one kind and handle that are written one by one in a fifth of a second; the last of them says how many
more there were. Writing takes the interpreter from the queries when it has least to spare."""
_ONE_BY_ONE = frozenset({ANSWERED, Code.INTERNAL.value, Code.MODEL_FAILED.value})
"""Answers are sampled; of faults every one counts."""
_PRUNE_EVERY = 50
"""Batches between two looks at how much the journal holds."""
_RETRY_S = 1.0
_SAY_EVERY_S = 30.0
"""While decisions are being dropped, or wait in vain."""
_log = get_logger(__name__)


def is_journaled(outcome: str, sample: float, draw: float) -> bool:
    """Refusals and failures, and a `sample` share of the answered; `draw` is uniform in [0, 1)."""
    return outcome != ANSWERED or draw < sample


class Allowance:
    """How many decisions may still carry candidates: `per_s` of them, a second's worth at once."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._left = per_s
        self._at = float("-inf")

    def take(self, now: float) -> bool:
        self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Waiting(msgspec.Struct, eq=False):
    """A decision to be written; `trace` None: without candidates, or with a decision that says how many there were."""

    decision: Decision
    trace: Trace | None
    alike: int = 0

    def whole(self) -> Decision:
        """With the candidates that are kept. Pure, and not quick: call it in a thread."""
        decision = replace(self.decision, alike=self.alike) if self.alike else self.decision
        if self.trace is None:
            return decision
        kept = self.trace.candidates(MAX_CANDIDATES)
        return replace(decision, candidates=kept, candidates_left_out=self.trace.size - len(kept))


class _Flood:
    """What ended in one way, of one handle, in one window of time."""

    __slots__ = ("kept", "last")

    def __init__(self) -> None:
        self.kept = 0
        self.last: Waiting | None = None
        """The last of them, while it waits: the rest is counted on it."""


class Journal:
    """`take` and `keep` belong to the event loop and never block; `run` is its eternal task, `drain` writes what is
    left.

    The catalogue being lost costs decisions only once the queue is full.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        sample: float,
        capacity: int = 20_000,
        batch: int = 500,
        linger_s: float = 0.2,
        keep: int = 500_000,
        draw: Callable[[], float] = random.random,
        clock: Clock | None = None,
    ) -> None:
        self._catalog = catalog
        self._clock = clock or SystemClock()
        self._sample = sample
        self._capacity = capacity
        self._batch = batch
        self._linger_s = linger_s
        self._keep = keep
        self._draw = draw
        self._queue: deque[Waiting] = deque()
        self._floods: dict[tuple[str, str], _Flood] = {}
        self._floods_until = float("-inf")
        self._allowance = Allowance(CANDIDATES_PER_S)
        self._waiting = asyncio.Event()
        self._batches = 0
        self._said_at = float("-inf")
        self.dropped = 0
        """Decisions that were to be journaled and were not."""
        self.written = 0

    def take(self, outcome: str, handle: str, attempts: int = 0, is_fallback: bool = False) -> bool:
        """Whether a decision of that outcome is one to `keep`: of answers, some are; of a flood of refusals, some. Ask
        once for each: those that are not kept are counted here."""
        if not is_journaled(outcome, self._sample, self._draw()):
            return False
        if len(self._queue) >= self._capacity:
            self.dropped += 1
            self._say("decisions are dropped: the journal is full", capacity=self._capacity)
            return False
        if outcome in _ONE_BY_ONE:
            return True
        flood = self._flood(outcome, handle)
        if flood.kept < ALIKE_AT_ONCE or flood.last is None:
            return True
        flood.last.alike += 1
        return False

    def keep(self, decision: Decision, trace: Trace | None = None) -> None:
        """Queue a decision that was taken; `trace` is what its candidates are made of."""
        if trace is not None and not self._allowance.take(self._clock.now()):
            decision, trace = replace(decision, candidates_left_out=trace.size), None
        waiting = Waiting(decision, trace)
        self._queue.append(waiting)
        self._waiting.set()
        if decision.outcome not in _ONE_BY_ONE:
            flood = self._flood(decision.outcome, decision.handle)
            flood.kept += 1
            flood.last = waiting

    def _flood(self, outcome: str, handle: str) -> _Flood:
        now = self._clock.now()
        if now >= self._floods_until:
            self._floods_until = now + self._linger_s
            self._floods.clear()
        return self._floods.setdefault((outcome, handle), _Flood())

    def __len__(self) -> int:
        """Decisions that wait to be written."""
        return len(self._queue)

    async def run(self) -> NoReturn:
        """Write in batches, for ever. A catalogue that is lost is tried again; the decisions wait meanwhile."""
        while True:
            await self._waiting.wait()
            await asyncio.sleep(self._linger_s)  # not a nap but the batch's window: what comes within shares a write
            try:
                await self._flush()
            except UnavailableError as error:
                self._say("decisions wait to be journaled", reason=error.text)
                await asyncio.sleep(_RETRY_S)
            else:
                self._say_over()

    async def drain(self) -> None:
        """Write everything that waits. Raises UnavailableError when the catalogue cannot take it."""
        await self._flush()

    async def find(self, key: str) -> Decision | None:
        """By decision id or request id, among those written and those waiting. Raises UnavailableError."""
        for waiting in reversed(self._queue):
            if key in (waiting.decision.id, waiting.decision.request_id):
                return waiting.whole()
        return await asyncio.to_thread(self._catalog.decision, key)

    async def recent(self, limit: int) -> Sequence[Decision]:
        """Newest first, of those written. Raises UnavailableError."""
        return await asyncio.to_thread(self._catalog.recent_decisions, limit)

    async def _flush(self) -> None:
        while self._queue:
            for flood in self._floods.values():
                flood.last = None  # what is being written changes no more
            batch = [self._queue[place] for place in range(min(self._batch, len(self._queue)))]
            self.written += await self._write(batch)
            for waiting in batch:
                if self._queue and self._queue[0] is waiting:
                    self._queue.popleft()
            self._batches += 1
            if self._batches % _PRUNE_EVERY == 0:
                await asyncio.to_thread(self._catalog.prune_decisions, self._keep)
        self._waiting.clear()

    async def _write(self, batch: Sequence[Waiting]) -> int:
        """How many were written. What no other try would mend is dropped one by one: neither the rest of its batch nor
        the controller may depend on it."""
        try:
            await asyncio.to_thread(lambda: self._catalog.write_decisions([waiting.whole() for waiting in batch]))
        except UnavailableError:
            raise
        except Exception as error:
            if len(batch) > 1:
                return sum([await self._write([waiting]) for waiting in batch])
            self.dropped += 1
            reason = error.text if isinstance(error, InfaasError) else type(error).__name__
            _log.error("a decision cannot be journaled", decision=batch[0].decision.id, reason=reason)
            return 0
        return len(batch)

    def _say(self, event: str, **facts: object) -> None:
        """At once, then at most every half minute: queries may come by the thousand while the catalogue is away."""
        now = self._clock.now()
        if now - self._said_at < _SAY_EVERY_S:
            return
        self._said_at = now
        _log.warning(event, waiting=len(self._queue), dropped=self.dropped, **facts)

    def _say_over(self) -> None:
        """The catalogue takes decisions again, after a line that said otherwise."""
        if self._said_at == float("-inf"):
            return
        self._said_at = float("-inf")
        _log.info("decisions are journaled again", written=self.written, dropped=self.dropped)
