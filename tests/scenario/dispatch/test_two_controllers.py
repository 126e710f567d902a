"""Two controllers at one worker, by the rules of both sides and without sockets or real time: what each promises holds
only if it knows what the other one has put there."""

from __future__ import annotations

import heapq
import random
from collections import Counter, deque
from collections.abc import Callable
from itertools import count

import pytest
from infaas_controller.commands import Answered, BatchResult, CancelStaged, Finish, SendBatch
from infaas_controller.engine import Engine
from infaas_controller.placing import EngineSettings
from infaas_controller.policies import installed_policies
from infaas_controller.room import Bounds
from infaas_worker.decide.advance import advance
from infaas_worker.decide.events import (
    Answer,
    BatchArrived,
    Command,
    Deliver,
    Event,
    InstanceTold,
    LoadAsked,
    Queries,
    QueriesCancelled,
    Run,
    RunEnded,
)
from infaas_worker.decide.instances import Loaded, WorkDone, WorkKind
from infaas_worker.decide.serving import Serving, held_for_others

from infaas.domain.ids import InstanceId
from infaas.domain.query import Code
from infaas.domain.variant import Variant
from infaas.testing.builders import a_query, a_variant, a_view, a_worker, an_instance
from infaas.testing.clock import ManualClock

INSTANCE = InstanceId("i1")
OBJECTIVE_MS = 100.0
ONE_AT_A_TIME = a_variant("v", p95_ms=10, per_item_ms=10, max_batch=1)
TOGETHER = a_variant("v", p95_ms=10, per_item_ms=1, max_batch=16)


class Place:
    """A worker with one core and one instance, and the controllers that share it."""

    def __init__(self, variant: Variant, controllers: int, *, says_others: bool = True, shares: bool = True) -> None:
        self.clock = ManualClock()
        self.variant = variant
        self.says_others = says_others
        self.shares = shares
        view = a_view(variants=[variant], workers=[a_worker("w1", instances=[an_instance("i1", variant="v")], cores=1)])
        self.engines: dict[str, Engine] = {}
        for number in range(controllers):
            names = count()
            engine = Engine(EngineSettings(
                installed_policies(), "slo", bounds=Bounds(10_000), draw=random.Random(number).random,
                fresh_instance=lambda names=names: InstanceId(f"made-{next(names)}"),
            ))  # fmt: skip
            engine.view_changed(view, self.now)
            self.engines[f"c{number}"] = engine
        self.ended: dict[str, tuple[Code | None, float]] = {}
        self._agenda: list[tuple[float, int, Callable[[], object]]] = []
        self._order = count()
        self._keys = count(1)
        self._sent: dict[int, tuple[str, SendBatch, float]] = {}
        self._running: dict[int, tuple[float, float, tuple[int, ...], int]] = {}
        self.runs: list[tuple[int, int]] = []
        """Items, and batches that shared them."""
        self._events: deque[Event] = deque()
        self.serving = Serving((0,), 2**30, probe_interval_s=1e9)
        assert variant.profile is not None
        self._run_s = tuple([variant.profile.latency_s(n, "mean_s") for n in range(1, variant.max_batch_size + 1)])
        self._post(LoadAsked(INSTANCE, variant.name, 1, 1, latencies=self._run_s))
        self._post(InstanceTold(INSTANCE, Loaded(0.0, False, 1, 1)))

    @property
    def now(self) -> float:
        return self.clock.now()

    def at(self, when: float, what: Callable[[], object]) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), what))

    def ask(self, controller: str, id: str) -> None:
        self.engines[controller].arrive(a_query(at=self.now, id=id, latency_ms=OBJECTIVE_MS), None, self.now)

    def run_until(self, end: float) -> None:
        while True:
            self._settle()
            dues = [due for engine in self.engines.values() if (due := engine.next_due()) is not None]
            times = [*dues, *([self._agenda[0][0]] if self._agenda else [])]
            if not times or min(times) > end:
                return
            self.clock.advance(max(0.0, min(times) - self.now))
            for engine in self.engines.values():
                engine.expire(self.now)
            while self._agenda and self._agenda[0][0] <= self.now:
                heapq.heappop(self._agenda)[2]()

    # -- the controllers' side

    def _settle(self) -> None:
        for name, engine in self.engines.items():
            engine.flush(self.now)
            self._perform(name, engine)

    def _perform(self, name: str, engine: Engine) -> None:
        while engine.commands:
            command = engine.commands.popleft()
            if isinstance(command, Finish):
                self._end(command.ticket.query.id, command.error.code)
            elif isinstance(command, Answered):
                for ticket in command.tickets:
                    self._end(ticket.query.id, None)
            elif isinstance(command, SendBatch):
                self._send(name, command)
            elif isinstance(command, CancelStaged):
                for key, (owner, sent, _) in self._sent.items():
                    if owner == name and sent.number == command.batch:
                        self._post(QueriesCancelled(key, frozenset(command.tickets)))
                        break

    def _end(self, id: str, code: Code | None) -> None:
        assert id not in self.ended, "a query ended twice"
        self.ended[id] = code, self.now

    def _send(self, name: str, batch: SendBatch) -> None:
        key = next(self._keys)
        self._sent[key] = name, batch, self.now
        queries = Queries.of(*((ticket.number, ticket.items, ticket.deadline) for ticket in batch.tickets))
        self._post(BatchArrived(key, name, INSTANCE, queries, likeness="all of one signature" if self.shares else None))

    # -- the worker's side

    def _post(self, event: Event) -> None:
        self._events.append(event)
        if len(self._events) > 1:
            return
        while self._events:
            self.serving, commands = advance(self.serving, self._events[0], self.now)
            for command in commands:
                self._do(command)
            self._events.popleft()

    def _do(self, command: Command) -> None:
        if isinstance(command, Run) and command.kind is not WorkKind.BATCH:
            self._post(InstanceTold(INSTANCE, WorkDone(command.key, command.kind, 0, 0.0)))
        elif isinstance(command, Run):
            self._run(command)
        elif isinstance(command, Deliver):
            name, batch, sent_at = self._sent.pop(command.key)
            began, run_s, ran, run_items = self._running.pop(command.key)
            late = {t.number: (Code.DEADLINE_PASSED.value, "") for t in batch.tickets if t.number not in ran}
            result = BatchResult(
                run_s=run_s,
                staged_s=began - sent_at,
                outputs=dict.fromkeys(ran),
                failed=late,
                others=self._others(name),
                run_items=run_items,
            )
            self.engines[name].done(batch.number, result, self.now)
        elif isinstance(command, Answer):
            name, batch, _ = self._sent.pop(command.key)
            result = BatchResult(command.code.value, command.text, command.was_running, others=self._others(name))
            self.engines[name].done(batch.number, result, self.now)

    def _run(self, command: Run) -> None:
        members = [(command.key, command.queries), *command.mates]
        items = sum(len(queries) for _, queries in members)
        run_s = self._run_s[items - 1]
        for key, queries in members:
            name, batch, _ = self._sent[key]
            self._running[key] = self.now, run_s, queries, items if command.mates else 0
            self.engines[name].started(batch.number, self.now, self._others(name))
        self.runs.append((items, len(members)))
        done = tuple([WorkDone(key, WorkKind.BATCH, len(ran), run_s) for key, ran in members])
        self.at(self.now + run_s, lambda: self._post(RunEnded(INSTANCE, done)))

    def _others(self, name: str) -> int:
        return held_for_others(self.serving, name, INSTANCE) if self.says_others else 0


def loaded(place: Place, factor: float) -> tuple[Counter[Code | None], float]:
    """So many times what the instance can do, for ten seconds, at random moments and to random controllers; returns how
    the queries ended, and how many it could answer."""
    random_ = random.Random(7)
    curve = next(iter(place.engines.values())).ledger.lanes[INSTANCE].curve
    assert curve is not None
    per_s = curve.preferred / curve.mean_s[curve.preferred]
    when, began = place.now, place.now
    for number in range(int(factor * per_s * 10)):
        when += random_.expovariate(factor * per_s)
        controller = random_.choice(list(place.engines))
        place.at(when, lambda controller=controller, number=number: place.ask(controller, f"q{number}"))
    place.run_until(when + 10.0)
    assert len(place.ended) == int(factor * per_s * 10), "every query ends"
    assert all(engine.live == 0 and engine.ledger.is_settled() for engine in place.engines.values())
    return Counter(code for code, _ in place.ended.values()), (when - began) * per_s


# What follows is of an instance for which batches do not pay, so that nothing but order and promises matters.


@pytest.mark.parametrize("factor", [2.0, 5.0])
@pytest.mark.parametrize("controllers", [1, 2, 4])
def test_what_several_controllers_admit_at_one_instance_is_answered_in_time(controllers: int, factor: float) -> None:
    ended, possible = loaded(Place(ONE_AT_A_TIME, controllers), factor)
    assert set(ended) == {None, Code.DEADLINE_UNREACHABLE}, "what cannot be done is refused at once"
    assert ended[None] >= 0.95 * possible


def test_without_a_word_of_the_others_controllers_promise_the_same_time_twice() -> None:
    ended, possible = loaded(Place(ONE_AT_A_TIME, 4, says_others=False), 5.0)
    assert ended[Code.DEADLINE_PASSED] > 0.3 * possible


def test_below_what_the_instance_can_do_nobody_is_refused_for_the_others() -> None:
    ended, _ = loaded(Place(ONE_AT_A_TIME, 4), 0.8)
    assert set(ended) == {None}


def test_where_batches_pay_several_controllers_fill_an_instance_as_one_does() -> None:
    """Each has a quarter of the queries, and makes its own batches of them; the worker runs them together."""
    place = Place(TOGETHER, 4)
    ended, _ = loaded(place, 0.8)
    assert ended[Code.DEADLINE_PASSED] == 0
    assert ended[None] > 0.95 * sum(ended.values())
    apart, _ = loaded(Place(TOGETHER, 4, shares=False), 0.8)
    assert apart[None] < 0.6 * ended[None]
    assert max(items for items, _ in place.runs) <= TOGETHER.max_batch_size
    assert Counter(members for _, members in place.runs).most_common(1)[0][0] == 4
