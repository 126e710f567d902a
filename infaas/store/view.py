"""Keeps the cluster's view in memory, so that no query ever waits for the store.

It lists and watches tasks, models, variants and workers, and takes from the controller's streams what workers say of
themselves. A store that is lost changes nothing: the last view stays. A store that comes back emptied, or with another
epoch, takes nothing away either: what it does not say is unknown, not absent (ARCHITECTURE §3).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import NoReturn, cast

from infaas.clock import Clock
from infaas.domain.cluster import UNFILLED, UNREAD, UNREAD_RETRY_S, ClusterView, WorkerRecord
from infaas.domain.ids import ModelName, TaskName, VariantName, WorkerId
from infaas.domain.task import Model, Task
from infaas.domain.variant import Variant
from infaas.errors import InvalidError, UnavailableError
from infaas.observe.log import get_logger
from infaas.rpc.codec import decode
from infaas.store.base import CursorLostError, Kind, MetadataStore, Snapshot
from infaas.store.workers import WorkerRoll

Subscriber = Callable[[ClusterView, ClusterView], None]

WATCHED = (Kind.TASK, Kind.MODEL, Kind.VARIANT, Kind.WORKER)
_LONGEST_PAUSE_S = 2.0
_log = get_logger(__name__)


class ViewKeeper:
    """Owned by one event loop; `run` is its eternal task. Reading `view` is free and never waits.

    All changes of one turn of the loop make one new view. A mapping that did not change keeps its identity, so that
    caches may be keyed by it.
    """

    def __init__(
        self, store: MetadataStore, clock: Clock, *, worker_grace_s: float = 10.0, awaits_catalogue: bool = False
    ) -> None:
        """`worker_grace_s`: how long a worker without a stream is kept when a store of another epoch lacks it.
        `awaits_catalogue`: somebody fills the store, and writes down when it has all (`Kind.CATALOGUE`)."""
        self._store = store
        self._clock = clock
        self._is_filled = not awaits_catalogue
        self._view = ClusterView(is_listed=False, is_filled=False)
        self._tasks: dict[TaskName, Task] = {}
        self._models: dict[ModelName, Model] = {}
        self._variants: dict[VariantName, Variant] = {}
        self._workers = WorkerRoll(grace_s=worker_grace_s)
        self._changed: set[Kind] = set()
        self._subscribers: list[Subscriber] = []
        self._commit_handle: asyncio.Handle | None = None
        self._cursor: str | None = None
        """None: list before watching."""
        self._epoch: str | None = None
        self._heard_at: float | None = None
        self.trouble: str | None = None
        """Why the store is not being followed now; None while it is."""
        self._first_sync = asyncio.Event()

    @property
    def view(self) -> ClusterView:
        return self._view

    @property
    def is_synced(self) -> bool:
        """Whether the store has been listed once since the start; stays true when the store is lost later."""
        return self._first_sync.is_set()

    async def wait_synced(self) -> None:
        await self._first_sync.wait()

    def age_s(self) -> float:
        """Seconds since the store last answered; infinite before it did."""
        return float("inf") if self._heard_at is None else max(0.0, self._clock.now() - self._heard_at)

    def subscribe(self, callback: Subscriber) -> Callable[[], None]:
        """Have `callback(old, new)` called on the loop after every change; returns what ends that. Its errors are
        logged and hurt nobody else."""
        self._subscribers.append(callback)

        def unsubscribe() -> None:
            with contextlib.suppress(ValueError):
                self._subscribers.remove(callback)

        return unsubscribe

    def worker_reported(self, record: WorkerRecord) -> None:
        """A worker said this on its stream. While the stream lives it is the better source than the store."""
        if self._workers.reported(record):
            self._mark(Kind.WORKER)

    def worker_stream_lost(self, worker_id: WorkerId) -> None:
        """No stream to the worker is connected any more: from now on the store's absence counts."""
        if self._workers.stream_lost(worker_id, self._clock.now()):
            self._mark(Kind.WORKER)

    async def run(self) -> NoReturn:
        """Follow the store for ever; after a loss again, with jittered pauses of at most two seconds."""
        failures = 0
        while True:
            heard_at = self._heard_at
            try:
                await self._follow()
                reason = "the watch ended"
            except (UnavailableError, CursorLostError) as error:
                reason = str(error)
            self.trouble = reason
            failures = 0 if heard_at != self._heard_at else failures + 1
            _log.warning("the view lost the store's stream", reason=reason, failures=failures, age_s=self.age_s())
            await asyncio.sleep(pause_s(failures, random.random()))

    async def _follow(self) -> None:
        if self._cursor is None or self._epoch is None:
            await self._list()
        assert self._cursor is not None
        assert self._epoch is not None
        try:
            async with contextlib.aclosing(self._store.watch(self._cursor, self._epoch)) as groups:
                async for group in groups:
                    for change in group:
                        self._take(change.kind, change.key, change.value)
                        self._cursor = change.cursor
                    self._heard()
        except CursorLostError:
            self._cursor = None
            raise

    async def _list(self) -> None:
        snapshot = await self._store.list((*WATCHED, Kind.CATALOGUE))
        is_same_epoch = snapshot.epoch == self._epoch
        if self._epoch is not None and not is_same_epoch:
            _log.warning("the store has another epoch; the view keeps what it does not hold", epoch=snapshot.epoch)
        for record in snapshot.records:
            self._take(record.kind, record.key, record.value)
        self._drop_missing(snapshot, is_same_epoch)
        self._epoch, self._cursor = snapshot.epoch, snapshot.cursor
        self._heard()
        if not self.is_synced:
            self._changed.update(WATCHED)  # an empty store is news as well: from now on, what is not there is not there
        self._first_sync.set()  # before anybody is told: what they are told is all that there is
        self._commit()

    def _drop_missing(self, snapshot: Snapshot, is_same_epoch: bool) -> None:
        present: dict[Kind, set[str]] = {kind: set() for kind in (*WATCHED, Kind.CATALOGUE)}
        for record in snapshot.records:
            present[record.kind].add(record.key)
        workers = {WorkerId(key) for key in present[Kind.WORKER]}
        if self._workers.listed(workers, is_same_epoch=is_same_epoch, now=self._clock.now()):
            self._mark(Kind.WORKER)
        if not is_same_epoch:
            return
        for kind in (Kind.TASK, Kind.MODEL, Kind.VARIANT):
            for key in self._mapping(kind).keys() - present[kind]:
                self._take(kind, key, None)

    def _heard(self) -> None:
        self._heard_at = self._clock.now()
        self.trouble = None
        if self._workers.lapsed(self._heard_at):
            self._mark(Kind.WORKER)

    def _take(self, kind: Kind, key: str, value: bytes | None) -> None:
        """One record as the store says it is. What cannot be read is logged and leaves the view as it was."""
        if kind is Kind.CATALOGUE and value is not None and not self._is_filled:
            self._is_filled = True  # it is written last, so that all that it stands for has been taken in
            self._mark(kind)
        if kind not in WATCHED:
            return
        if value is None:
            self._remove(kind, key)
            return
        try:
            decoded = _decoded(kind, key, value)
        except InvalidError as error:
            _log.error("a record in the store cannot be read and is skipped", kind=kind, key=key, reason=str(error))
            return
        if isinstance(decoded, WorkerRecord):
            if self._workers.stored(decoded):
                self._mark(kind)
        elif (mapping := self._mapping(kind)).get(key) != decoded:
            mapping[key] = decoded
            self._mark(kind)

    def _remove(self, kind: Kind, key: str) -> None:
        if kind is Kind.WORKER:
            is_news = self._workers.deleted(WorkerId(key))
        else:
            is_news = self._mapping(kind).pop(key, None) is not None
        if is_news:
            self._mark(kind)

    def _mapping(self, kind: Kind) -> dict[str, Task | Model | Variant]:
        found = {Kind.TASK: self._tasks, Kind.MODEL: self._models, Kind.VARIANT: self._variants}[kind]
        return cast("dict[str, Task | Model | Variant]", found)

    def _mark(self, kind: Kind) -> None:
        self._changed.add(kind)
        if self._commit_handle is None:
            self._commit_handle = asyncio.get_running_loop().call_soon(self._commit)

    def _commit(self) -> None:
        """Make the next view of all that changed in this turn of the loop, and tell the subscribers."""
        if self._commit_handle is not None:
            self._commit_handle.cancel()
            self._commit_handle = None
        if not self._changed:
            return
        changed, self._changed = self._changed, set()
        old = self._view
        new = self._view = ClusterView(
            tasks=dict(self._tasks) if Kind.TASK in changed else old.tasks,
            models=dict(self._models) if Kind.MODEL in changed else old.models,
            variants=dict(self._variants) if Kind.VARIANT in changed else old.variants,
            workers=dict(self._workers.records) if Kind.WORKER in changed else old.workers,
            version=old.version + 1,
            is_listed=self.is_synced,
            is_filled=self.is_synced and self._is_filled,
        )
        for callback in tuple(self._subscribers):
            try:
                callback(old, new)
            except Exception as error:
                _log.error("a subscriber of the view failed", subscriber=repr(callback), exc_info=error)


def require_listed(view: ClusterView) -> None:
    """For whoever is about to say that something is not there. Raises UnavailableError before the store was read: then
    nobody knows."""
    if not view.is_listed:
        raise UnavailableError(UNREAD, retry_after_s=UNREAD_RETRY_S)


def require_filled(view: ClusterView) -> None:
    """As `require_listed`, for whoever is about to say that something is not registered."""
    require_listed(view)
    if not view.is_filled:
        raise UnavailableError(UNFILLED, retry_after_s=UNREAD_RETRY_S)


def pause_s(failures: int, draw: float) -> float:
    """How long to wait before following again: short at first, doubling, at most two seconds, always jittered so that
    the clients of a store that comes back do not all come at once. `draw` is uniform in [0, 1)."""
    longest = min(_LONGEST_PAUSE_S, 0.05 * 2.0 ** min(failures, 10))
    return longest * (0.5 + 0.5 * draw)


def _decoded(kind: Kind, key: str, value: bytes) -> Task | Model | Variant | WorkerRecord:
    decoded: Task | Model | Variant | WorkerRecord
    match kind:
        case Kind.TASK:
            decoded = decode(value, Task)
        case Kind.MODEL:
            decoded = decode(value, Model)
        case Kind.VARIANT:
            decoded = decode(value, Variant)
        case _:
            decoded = decode(value, WorkerRecord)
    name = decoded.id if isinstance(decoded, WorkerRecord) else decoded.name
    if name != key:
        raise InvalidError(f"the record under {key!r} calls itself {name!r}")
    return decoded
