"""What workers say up their streams, told to the engine; what follows from it is left to whoever performs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from infaas.clock import Clock
from infaas.domain.cluster import WorkerRecord
from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.observe.log import get_logger
from infaas.rpc.v1 import worker_pb2 as pb
from infaas_controller.commands import BatchResult
from infaas_controller.engine import Engine
from infaas_controller.tally import Tally
from infaas_controller.workers import ViewSource

_log = get_logger(__name__)


class BatchObserver(Protocol):
    def observe_batch(self, variant: str, items: int) -> None: ...


class Heard:
    """The sink of the workers' streams (`link.Sink`)."""

    def __init__(
        self, engine: Engine, view_keeper: ViewSource, clock: Clock, tally: Tally, after: Callable[[], None]
    ) -> None:
        """`after` performs what the engine has decided on; it is called after every event that may have made it."""
        self._engine = engine
        self._keeper = view_keeper
        self._clock = clock
        self._tally = tally
        self._after = after
        self.observer: BatchObserver | None = None
        self.answered = 0
        """Items of the last batch that ran."""

    def worker_connected(self, record: WorkerRecord) -> None:
        try:
            self._engine.worker_reported(record, self._clock.now())
        finally:
            self._after()

    def worker_lost(self, worker: WorkerId) -> None:
        _log.warning("worker lost", worker=worker, in_flight=self._engine.live)
        try:
            self._engine.worker_lost(worker, self._clock.now())
            if worker in self._keeper.view.workers:
                self._engine.view_changed(self._keeper.view, self._clock.now())
        finally:
            self._after()

    def batch_started(self, batch: int, others: int) -> None:
        self._engine.started(batch, self._clock.now(), others)
        if self._engine.has_work:
            self._after()

    def batch_done(self, batch: int, result: BatchResult) -> None:
        try:
            if not result.error and (ran := self._engine.ran(batch, result)) is not None:
                lane, items = ran
                self.answered = items
                self._tally.batch_ran(lane.variant, items, result.run_s)
                if self.observer is not None:
                    self.observer.observe_batch(lane.variant, items)
            self._engine.done(batch, result, self._clock.now())
        finally:
            self._after()

    def exchange_reported(self, worker: WorkerId, given_up: frozenset[VariantName] | None) -> None:
        self._engine.exchange_reported(worker, given_up)

    def loads_reported(self, loads: Sequence[pb.InstanceLoad]) -> None:
        now = self._clock.now()
        for load in loads:
            self._engine.load_reported(InstanceId(load.instance), load.held_items, now)
        if self._engine.has_work:
            self._after()
