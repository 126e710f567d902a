"""A cluster under the engine that is moved by hand: workers run what their profiles say, no sockets, no real time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import count

from infaas_controller.commands import Answered, BatchResult, Finish, LoadOn, SendBatch
from infaas_controller.decide.policies.base import Policy
from infaas_controller.engine import Engine
from infaas_controller.placing import EngineSettings
from infaas_controller.policies import installed_policies
from infaas_controller.queues import Ticket
from infaas_controller.room import Bounds

from infaas.domain.ids import InstanceId, WorkerId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.query import Code, Query
from infaas.domain.variant import PROCESS_START_S, Isolation, Variant
from infaas.testing.builders import a_query, a_view, a_worker, an_instance
from infaas.testing.clock import ManualClock

WIDE = Bounds(10_000)


class SimulatedCluster:
    """Instances run one batch at a time, at the mean of their profile times `slow`, and loads take what they take."""

    def __init__(
        self,
        variants: Sequence[Variant],
        loaded: Sequence[str],
        *,
        policy: str = "slo",
        cores: int = 8,
        policies: Callable[[str], Policy] | None = None,
        elsewhere: Mapping[str, Sequence[str]] | None = None,
        bounds: Bounds = WIDE,
    ) -> None:
        """`loaded` is on the worker `w1`; `elsewhere` are other workers, each with what is loaded there."""
        self.clock = ManualClock()
        self.slow: dict[str, float] = {}
        self.hung: set[str] = set()
        self.process_load_s: float | None = None
        """What loading takes where a process is started for it; as the profile says when None."""
        self.variants = {variant.name: variant for variant in variants}
        names = count()
        self.engine = Engine(EngineSettings(
            policies or installed_policies(), policy, bounds=bounds, draw=random.Random(5).random,
            fresh_instance=lambda: InstanceId(f"made-{next(names)}"),
        ))  # fmt: skip
        instances = [an_instance(f"i{n}-{name}", variant=name) for n, name in enumerate(loaded)]
        self.worker = a_worker("w1", instances=instances, cores=cores)
        others = [
            a_worker(
                id,
                instances=[an_instance(f"{id}-{n}-{v}", variant=v, worker=id) for n, v in enumerate(there)],
                cores=cores,
            )
            for id, there in (elsewhere or {}).items()
        ]
        self.view = a_view(variants=variants, workers=[self.worker, *others])
        self.engine.view_changed(self.view, self.now)
        self.ended: dict[str, Code | None] = {}
        self.texts: dict[str, str] = {}
        self.served: dict[str, str] = {}
        self.sizes: list[int] = []
        self._agenda: list[tuple[float, int, str, object]] = []
        self._order = count()
        self._free_at: dict[str, float] = {}

    @property
    def now(self) -> float:
        return self.clock.now()

    def submit(self, handle: str = "digits", **given: object) -> Ticket:
        query: Query = a_query(handle, at=self.now, **given)  # type: ignore[arg-type]
        ticket = self.engine.arrive(query, None, self.now)
        self._perform()
        return ticket

    def submit_together(self, count: int, left_ms: Sequence[float] = (), **given: object) -> list[Ticket]:
        """So many queries that differ in nothing but their values, in one turn of the loop: `q0`, `q1` and so on. The
        first have so much of their time left."""
        query: Query = a_query(at=self.now, **given)  # type: ignore[arg-type]
        queries = [query._replace(id=f"q{n}") for n in range(count)]
        for n, ms in enumerate(left_ms):
            deadline = self.now + ms / 1e3
            queries[n] = query._replace(
                id=f"q{n}", arrived_at=deadline - (query.deadline - query.arrived_at), deadline=deadline
            )
        return self.submit_these(queries)

    def submit_these(self, queries: Sequence[Query]) -> list[Ticket]:
        """In one turn of the loop."""
        tickets = [self.engine.ticket(query, None) for query in queries]
        self.engine.arrive_together(tickets, self.now)
        self._perform()
        return tickets

    def settle(self) -> None:
        """The end of a turn of the loop."""
        self.engine.flush(self.now)
        self._perform()

    def run_for(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            self.settle()
            due = self.engine.next_due()
            times = [t for t in (due, self._agenda[0][0] if self._agenda else None) if t is not None]
            if not times or min(times) > end:
                break
            self.clock.advance(max(0.0, min(times) - self.now))
            self.engine.expire(self.now)
            while self._agenda and self._agenda[0][0] <= self.now:
                _, _, what, subject = heapq.heappop(self._agenda)
                self._happen(what, subject)
            self._perform()
        self.clock.advance(max(0.0, end - self.now))
        self.engine.expire(self.now)
        self.settle()

    def _happen(self, what: str, subject: object) -> None:
        if what == "start" and isinstance(subject, SendBatch):
            self.engine.started(subject.number, self.now)
        elif what == "done" and isinstance(subject, SendBatch):
            outputs: dict[int, object] = {ticket.number: None for ticket in subject.tickets}
            run_s = self._run_s(subject)
            staged_s = max(0.0, self.now - run_s - subject.tickets[0].query.arrived_at)
            self.engine.done(subject.number, BatchResult(run_s=run_s, staged_s=staged_s, outputs=outputs), self.now)
        elif what == "loaded" and isinstance(subject, LoadOn):
            self.report(
                str(subject.instance), subject.variant.name, InstanceState.READY,
                worker=str(subject.worker), isolation=subject.variant.isolation,
            )  # fmt: skip

    def report(
        self,
        instance: str,
        variant: str,
        state: InstanceState,
        reason: str = "",
        *,
        worker: str = "w1",
        isolation: Isolation = Isolation.THREAD,
    ) -> None:
        known = self.view.workers[WorkerId(worker)]
        record = an_instance(
            instance, worker=worker, variant=variant, state=state, reason=reason, isolation=isolation
        )  # fmt: skip
        others = [each for key, each in known.instances.items() if key != instance]
        changed = a_worker(worker, instances=[*others, record], cores=known.cores)
        if worker == "w1":
            self.worker = changed
        self.view = self.view.with_worker(changed)
        self.engine.view_changed(self.view, self.now)

    def lose(self, worker: str) -> None:
        """Its process is gone with all that it had; its stream breaks, and the view follows."""
        self._agenda = [each for each in self._agenda if _worker_of(each[3]) != worker]
        heapq.heapify(self._agenda)
        self.engine.worker_lost(WorkerId(worker), self.now)
        self.view = self.view.without_worker(WorkerId(worker))
        self.engine.view_changed(self.view, self.now)
        self._perform()

    def _run_s(self, batch: SendBatch) -> float:
        items = sum(ticket.items for ticket in batch.tickets)
        return self.variants[batch.lane.variant].run_s(items, "mean_s") * self.slow.get(batch.lane.variant, 1.0)

    def _perform(self) -> None:
        while self.engine.commands:
            command = self.engine.commands.popleft()
            if isinstance(command, Finish):
                ticket = command.ticket
                assert ticket.query.id not in self.ended, "a query ended twice"
                self.ended[ticket.query.id] = command.error.code
                self.texts[ticket.query.id] = command.error.text
            elif isinstance(command, Answered):
                for ticket in command.tickets:
                    assert ticket.query.id not in self.ended, "a query ended twice"
                    self.ended[ticket.query.id], self.texts[ticket.query.id] = None, ""
                    assert ticket.lane is not None
                    self.served[ticket.query.id] = ticket.lane.variant
            elif isinstance(command, SendBatch):
                self._run(command)
            elif isinstance(command, LoadOn):
                profile = command.variant.profile
                assert profile is not None
                takes_s = profile.cold_load_s
                if command.variant.isolation is Isolation.PROCESS:
                    takes_s = self.process_load_s or (takes_s + PROCESS_START_S)
                self._plan(self.now + takes_s, "loaded", command)

    def _run(self, batch: SendBatch) -> None:
        self.sizes.append(sum(ticket.items for ticket in batch.tickets))
        if batch.lane.id in self.hung:
            return
        start = max(self.now, self._free_at.get(batch.lane.id, 0.0))
        end = self._free_at[batch.lane.id] = start + self._run_s(batch)
        self._plan(start, "start", batch)
        self._plan(end, "done", batch)

    def _plan(self, when: float, what: str, subject: object) -> None:
        heapq.heappush(self._agenda, (when, next(self._order), what, subject))


def _worker_of(subject: object) -> str | None:
    if isinstance(subject, SendBatch):
        return str(subject.lane.worker.id)
    return str(subject.worker) if isinstance(subject, LoadOn) else None
