"""Which workers there are, told from two sources that may disagree: the store, and the streams to the workers.

While a stream is connected it alone counts. The store's absence counts once no stream is, and only where the store
really said so; a store of another epoch that lacks a worker has not said anything about it yet (ARCHITECTURE §3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from infaas.domain.cluster import WorkerRecord
from infaas.domain.ids import WorkerId


class WorkerRoll:
    """Plain state, no effects. Every method that takes news says whether the roll is another one now."""

    def __init__(self, *, grace_s: float) -> None:
        self._grace_s = grace_s
        self._known: dict[WorkerId, WorkerRecord] = {}
        self._connected: set[WorkerId] = set()
        self._stored: set[WorkerId] = set()
        """Those that the store holds in its present epoch."""
        self._unclear_since: dict[WorkerId, float] = {}
        """Those that a store of another epoch lacks, from when on."""
        self._lost_at: dict[WorkerId, float] = {}
        self._was_listed = False

    @property
    def records(self) -> Mapping[WorkerId, WorkerRecord]:
        return self._known

    def reported(self, record: WorkerRecord) -> bool:
        """The worker's own stream says so."""
        self._connected.add(record.id)
        self._lost_at.pop(record.id, None)
        return self._learn(record)

    def stream_lost(self, worker: WorkerId, now: float) -> bool:
        self._connected.discard(worker)
        if worker not in self._known:
            return False
        self._lost_at[worker] = now
        if worker in self._stored:
            return False
        if not self._was_listed:
            self._unclear_since.setdefault(worker, now)
        return worker not in self._unclear_since and self._forget(worker)

    def stored(self, record: WorkerRecord) -> bool:
        """The store holds this record."""
        self._stored.add(record.id)
        self._unclear_since.pop(record.id, None)
        return record.id not in self._connected and self._learn(record)

    def deleted(self, worker: WorkerId) -> bool:
        """The store's stream says that the record was deleted or expired."""
        self._stored.discard(worker)
        self._unclear_since.pop(worker, None)
        return worker not in self._connected and self._forget(worker)

    def listed(self, present: Iterable[WorkerId], *, is_same_epoch: bool, now: float) -> bool:
        """A listing of the store holds these, and no others. Their records come through `stored`."""
        self._stored = set(present)
        self._was_listed = True
        missing = self._known.keys() - self._stored
        if is_same_epoch:
            settled = [worker for worker in missing if worker not in self._unclear_since]
            removed = [self.deleted(worker) for worker in settled]
            return any(removed)
        for worker in missing:
            self._unclear_since[worker] = now
        return False

    def lapsed(self, now: float) -> bool:
        """Forget the workers that neither source has spoken of for the grace: the stream to them was lost, and the
        store of the new epoch never got them back. What was never streamed stays: nothing speaks against it."""
        over = [
            worker
            for worker, since in self._unclear_since.items()
            if worker not in self._connected
            and worker in self._lost_at
            and now - max(since, self._lost_at[worker]) >= self._grace_s
        ]
        for worker in over:
            del self._unclear_since[worker]
            self._forget(worker)
        return bool(over)

    def _learn(self, record: WorkerRecord) -> bool:
        if self._known.get(record.id) == record:
            return False
        self._known[record.id] = record
        return True

    def _forget(self, worker: WorkerId) -> bool:
        self._lost_at.pop(worker, None)
        return self._known.pop(worker, None) is not None
