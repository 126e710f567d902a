"""Lanes and decks: what one instance, and one worker, has been promised by this controller.

The ledger owns them and is the only one to change them; selection and batching read them.
"""

from __future__ import annotations

from infaas.domain.cluster import WorkerRecord
from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.query import HARD_LIMIT_S, Priority, Requirements
from infaas.domain.variant import Isolation
from infaas_controller.decide.curve import Curve
from infaas_controller.observed import Hop, Pace

RANKS = 3
URGENCIES = 2 * RANKS
CHAINS_KEPT_S = 0.005
_URGENCY = {priority: 2 * priority.rank for priority in Priority}


def urgency_of(wanted: Requirements) -> int:
    """Whose work is reckoned to come first: by priority, and within one by whether there is a latency objective. Those
    without one have the hard limit's deadline, so that the earliest deadline first is nearly always another's."""
    latency_s = wanted.latency_s
    return _URGENCY[wanted.priority] + (latency_s is None or latency_s >= HARD_LIMIT_S)


class Flight:
    """A batch on its way to an instance or running there."""

    __slots__ = ("expected_s", "gathered_s", "has_more", "is_next", "items", "number", "sent_at", "started_at")

    def __init__(self, number: int, items: int, expected_s: float, sent_at: float) -> None:
        self.number = number
        self.items = items
        self.expected_s = expected_s
        self.sent_at = sent_at
        self.gathered_s = 0.0
        """How long its last query had been here when it left, though nothing ran that it had to wait for."""
        self.started_at: float | None = None
        self.is_next = False
        """Whether all that it waited for was the end of the batch before it."""
        self.has_more = False
        """Whether it left queries behind."""


class Lane:
    """What one instance has been promised. `ready_at` lies ahead while it loads."""

    __slots__ = (
        "ahead", "classes", "curve", "flights", "foreign", "foreign_until", "id", "instance_state", "is_leaving",
        "is_watched", "isolation", "pace", "passed", "ready_at", "slots", "variant", "worker",
    )  # fmt: skip

    def __init__(self, id: InstanceId, variant: VariantName, worker: Deck, curve: Curve | None) -> None:
        self.id = id
        self.variant = variant
        self.worker = worker
        self.curve = curve
        """None while the variant's profile is not known here; such a lane is never chosen."""
        self.instance_state = InstanceState.LOADING
        self.slots = 2
        self.isolation = Isolation.THREAD
        self.ready_at = 0.0
        """When it is expected to be READY, then when it became that; 0: before this controller knew of it."""
        self.is_watched = False
        """Whether a timer will look at it while it loads."""
        self.is_leaving = False
        """Whether this controller has told its worker to unload it, which the worker may not have said yet."""
        self.ahead = [0] * URGENCIES
        """Items promised to it that still wait here, by urgency: those of each and of all that are more urgent."""
        self.classes = [0] * RANKS
        """Classes of queries that hold a promise of it, by priority rank: those of each and of all above. Queries of
        two classes never share a batch."""
        self.flights: dict[int, Flight] = {}
        self.foreign = 0
        """Items of other controllers that it holds, by the worker's last word."""
        self.foreign_until = 0.0
        self.pace = Pace()
        self.passed = 0
        """Turns since one that was owed to a lower priority."""

    @property
    def is_usable(self) -> bool:
        return (
            self.curve is not None
            and (self.instance_state is InstanceState.READY or self.instance_state is InstanceState.LOADING)
            and self.worker.is_ready
        )

    @property
    def is_ready(self) -> bool:
        return self.instance_state is InstanceState.READY and self.worker.is_ready

    @property
    def may_be_unloaded(self) -> bool:
        """Also when its variant is not known here any more."""
        is_there = self.instance_state is InstanceState.READY or self.instance_state is InstanceState.LOADING
        return is_there and self.worker.is_ready

    @property
    def is_isolated(self) -> bool:
        """Whether its death would harm nothing else."""
        return self.isolation is Isolation.PROCESS

    @property
    def is_started_up(self) -> bool:
        """Whether its work takes cores now."""
        return self.instance_state is not InstanceState.LOADING

    @property
    def is_idle(self) -> bool:
        return not self.flights and not self.ahead[-1]

    @property
    def free_slots(self) -> int:
        """Batches that it may be sent now. What others have there keeps it busy, too: beside that, one of ours that has
        not begun is enough, and what is not sent yet can still be chosen anew.

        A word on others that is too old for predictions (`has_foreign`) still counts here. That can only be too little:
        the next word, a second later, says how it is, and what we have there frees its slot when it begins or ends
        whatever others do. A slot that came free by time alone would be found by nobody, since events alone make the
        engine look."""
        free = self.slots - len(self.flights)
        if not self.foreign or free <= 0:
            return free
        return min(free, 1 - sum(flight.started_at is None for flight in self.flights.values()))

    def free_at(self, now: float) -> float:
        """When what was sent to it will be done. A batch that is overdue by x is taken to need another x."""
        at = self.ready_at
        if at < now and self.instance_state is InstanceState.LOADING:
            at = 2 * now - at
        for flight in self.flights.values():
            begun = flight.started_at
            if begun is None:
                begun = flight.sent_at if flight.sent_at > at else at
            at = begun + flight.expected_s
            if at < now:
                at = 2 * now - at
        at = max(at, now)
        return at + self._run_s(self.foreign) if self.has_foreign(now) else at

    def has_work(self, now: float) -> bool:
        """Whether it takes cores, or will: it has loaded, and somebody has given it something to do."""
        return self.is_started_up and (not self.is_idle or self.has_foreign(now))

    def has_foreign(self, now: float) -> bool:
        """Whether other controllers have work at it, as far as is known."""
        return self.foreign > 0 and self.foreign_until > now

    def waiting_s(self) -> float:
        """Seconds of work that is promised but not sent."""
        return self._run_s(self.ahead[-1])

    def _run_s(self, items: int) -> float:
        """In runs of the size that pays; those of several controllers share them."""
        curve = self.curve
        if curve is None or not items:
            return 0.0
        full, rest = divmod(items, curve.preferred)
        return full * curve.mean_s[curve.preferred] + (curve.mean_s[rest] if rest else 0.0)


class Deck:
    """One worker's lanes and what it has been observed to add to a query's way."""

    __slots__ = ("_chains", "_chains_from", "busy", "hop", "id", "is_reachable", "lanes", "loaded", "record")

    def __init__(self, record: WorkerRecord, hop: Hop) -> None:
        self.id = record.id
        self.record = record
        self.is_reachable = True
        """Whether there is a stream to it."""
        self.lanes: dict[InstanceId, Lane] = {}
        self.busy: dict[InstanceId, Lane] = {}
        """Those of its lanes that have been promised something, by this controller or by others."""
        self._chains: tuple[list[tuple[float, int, Lane]], int] | None = None
        self._chains_from = 0.0
        self.hop = hop
        self.loaded: set[VariantName] = set()
        """Variants that have been loaded here before: their files are in the page cache."""

    @property
    def is_ready(self) -> bool:
        return self.is_reachable and self.record.state is WorkerState.READY

    def cores_left_at(self, lane: Lane, threads: int, now: float) -> float:
        """When `threads` cores are free beside what was sent to its other lanes, by whomever: for what would be sent
        next. Work that still waits is not ahead of it."""
        busy = [
            (other.free_at(now), other.curve.variant.threads)
            for other in self.busy.values()
            if (other.flights or other.has_foreign(now)) and other is not lane and other.curve is not None
        ]
        wanted = sum(each for _, each in busy)
        at = now
        for end, freed in sorted(busy):
            if wanted + threads <= self.record.cores:
                break
            at = end
            wanted -= freed
        return at

    def cores_free_at(self, lane: Lane | None, threads: int, now: float) -> float:
        """When `threads` cores are free beside the work promised to its other lanes.

        Lanes are chains of work that run side by side. When together they want more cores than there are, each
        takes longer in that proportion.
        """
        chains, wanted = self._chains_at(now)
        cores = self.record.cores
        if wanted + threads <= cores:
            return now
        if lane is not None and lane.id in self.busy and lane.curve is not None and lane.has_work(now):
            wanted -= lane.curve.variant.threads
            if wanted + threads <= cores:
                return now
        stretch = max(1.0, wanted / cores)
        at = now
        for end, freed, other in chains:
            if other is lane:
                continue
            at = max(now, now + (end - now) * stretch)
            wanted -= freed
            if wanted + threads <= cores:
                break
        return at

    def changed(self, lane: Lane) -> None:
        """Something was promised to a lane of this worker, or done: what was worked out of it no longer holds. One that
        was forgotten is not taken in again by what is still released of it."""
        if self.lanes.get(lane.id) is not lane:
            return
        if lane.flights or lane.ahead[-1] or lane.foreign:
            self.busy[lane.id] = lane
        else:
            self.busy.pop(lane.id, None)
        self._chains = None

    def forget(self, lane: Lane) -> None:
        """The lane is gone, with what it was promised."""
        self.lanes.pop(lane.id, None)
        self.busy.pop(lane.id, None)
        self._chains = None

    def _chains_at(self, now: float) -> tuple[list[tuple[float, int, Lane]], int]:
        """(end of its work, threads, lane) of every busy lane by end, and the threads of all. Kept until something
        changes, or for a few milliseconds: only work that is overdue moves by itself."""
        if self._chains is None or not 0 <= now - self._chains_from < CHAINS_KEPT_S:
            chains: list[tuple[float, int, Lane]] = []
            wanted = 0
            for lane in self.busy.values():
                curve = lane.curve
                if curve is not None and lane.has_work(now):
                    chains.append((lane.free_at(now) + lane.waiting_s(), curve.variant.threads, lane))
                    wanted += curve.variant.threads
            chains.sort(key=_end)
            self._chains, self._chains_from = (chains, wanted), now
        return self._chains

    def utilisation(self, now: float) -> float:
        """Core-seconds promised, per core: the load that this controller has put on the worker, and what it knows of
        others'."""
        total = 0.0
        for lane in self.busy.values():
            if lane.curve is not None:
                total += (max(0.0, lane.free_at(now) - now) + lane.waiting_s()) * lane.curve.variant.threads
        return total / max(1, self.record.cores)

    def set_aside_bytes(self) -> int:
        """Of all its instances, idle ones too, but of those of one variant that are READY only one's: the others leave
        for a variant that has none here (`held_bytes`)."""
        held = 0
        counted: set[VariantName] = set()
        for lane in self.lanes.values():
            if lane.curve is None or (lane.is_ready and lane.variant in counted):
                continue
            if lane.is_ready:
                counted.add(lane.variant)
            held += lane.curve.variant.memory_bytes
        return held

    def held_bytes(self) -> int:
        """Memory that could not be freed now: of instances that load or have work, but of those of one variant that
        are READY only one's. The others leave for a variant that has none, whatever they do."""
        held = 0
        counted: set[tuple[VariantName, Isolation]] = set()
        for lane in self.lanes.values():
            if lane.curve is None:
                continue
            if lane.instance_state is InstanceState.READY:
                if lane.is_idle or (lane.variant, lane.isolation) in counted:
                    continue
                counted.add((lane.variant, lane.isolation))
            held += lane.curve.variant.memory_bytes
        return held


def _end(chain: tuple[float, int, Lane]) -> float:
    return chain[0]
