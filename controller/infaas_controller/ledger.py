"""The ledger: this controller's own promises and dispatches, laid over the view.

The view says which instances exist; the ledger says what each of them has been promised, and from that and the profiles
predicts when an answer would come. Lanes (one per instance) follow the view worker by worker, so that a change costs
what changed. Totals are sums over live entries and return to nothing when these do.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from infaas.domain.cluster import ClusterView, InstanceRecord, WorkerRecord
from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.variant import Variant
from infaas_controller.decide.curve import Curve
from infaas_controller.lanes import DEFAULT_HOP_S, Deck, Flight, Lane

HOP_BOUNDS_S = (0.00005, 0.02)
HOP_WEIGHT = 0.1
CORRECTION_BOUNDS = (0.5, 4.0)
CORRECTION_WEIGHT = 0.05
FOREIGN_FOR_S = 1.5
"""How long a report's word on other controllers' batches is believed."""
FAILED_LOAD_FOR_S = 30.0


@dataclass(frozen=True, slots=True)
class VariantLoad:
    """What was observed of a variant over its last full second."""

    replicas: int
    outstanding: int
    """Items promised or on their way, now."""
    rate_per_s: float
    """Items done per second."""
    mean_latency_s: float | None
    """At the worker: waiting for its turn and running, per batch; None when nothing ran."""


class _Window:
    """Counts of the second that runs and of the one before."""

    __slots__ = ("items", "last_items", "last_runs", "last_seconds", "runs", "seconds", "since")

    def __init__(self, now: float) -> None:
        self.since = now
        self.items = self.runs = self.last_items = self.last_runs = 0
        self.seconds = self.last_seconds = 0.0

    def roll(self, now: float) -> None:
        age = now - self.since
        if age < 1.0:
            return
        is_next = age < 2.0
        self.last_items, self.last_runs = (self.items, self.runs) if is_next else (0, 0)
        self.last_seconds = self.seconds if is_next else 0.0
        self.items = self.runs = 0
        self.seconds = 0.0
        self.since = self.since + 1.0 if is_next else now


class Ledger:
    """Follows the view, takes reservations and dispatches, predicts completions."""

    def __init__(self, overhead_s: float = DEFAULT_HOP_S, *, needs_streams: bool = False) -> None:
        self._overhead_s = overhead_s
        self._reachable: set[WorkerId] | None = set() if needs_streams else None
        self.decks: dict[WorkerId, Deck] = {}
        self.lanes: dict[InstanceId, Lane] = {}
        self._by_variant: dict[VariantName, dict[InstanceId, Lane]] = {}
        self._lists: dict[VariantName, tuple[Lane, ...]] = {}
        self._pending: dict[InstanceId, Lane] = {}
        self._curves: dict[VariantName, Curve] = {}
        self._variants: object = None
        self._corrections: dict[VariantName, dict[int, float]] = {}
        self._failed_loads: dict[tuple[VariantName, WorkerId], tuple[float, str]] = {}
        self._windows: dict[VariantName, _Window] = {}

    # -- following the view ------------------------------------------------------------------------------------------

    def sync(self, view: ClusterView, now: float) -> tuple[list[Lane], list[Lane]]:
        """Lay the ledger over a view. Returns the lanes that became READY and those that are lost with their work.

        A lane is lost when its instance is FAILED or gone, or its worker is gone; one that drains keeps what was sent.
        """
        if view.variants is not self._variants:
            self._follow_variants(view)
        ready: list[Lane] = []
        lost: list[Lane] = []
        for worker_id in [known for known in self.decks if known not in view.workers]:
            lost.extend(self.worker_lost(worker_id))
        for record in view.workers.values():
            known = self.decks.get(record.id)
            if known is None or known.record is not record:
                self._follow_worker(record, view, now, ready, lost)
        return ready, lost

    def worker_reported(self, record: WorkerRecord, view: ClusterView, now: float) -> tuple[list[Lane], list[Lane]]:
        """As `sync`, for what one worker has just said and the view may not hold yet."""
        ready: list[Lane] = []
        lost: list[Lane] = []
        self._follow_worker(record, view, now, ready, lost)
        return ready, lost

    def worker_lost(self, worker: WorkerId) -> list[Lane]:
        """Forget a worker with all its lanes, which are returned. A `sync` finds it anew if it is in the view."""
        deck = self.decks.pop(worker, None)
        return [self._drop(lane) for lane in list(deck.lanes.values())] if deck is not None else []

    def set_reachable(self, worker: WorkerId, is_reachable: bool) -> list[Lane]:
        """Whether there is a stream to a worker; lanes of one that cannot be reached are not chosen. Returns the lanes
        that can be used now and could not before."""
        if self._reachable is None:
            self._reachable = set(self.decks)
        (self._reachable.add if is_reachable else self._reachable.discard)(worker)
        deck = self.decks.get(worker)
        if deck is None or deck.is_reachable == is_reachable:
            return []
        deck.is_reachable = is_reachable
        return [lane for lane in deck.lanes.values() if lane.is_ready]

    def _follow_variants(self, view: ClusterView) -> None:
        self._variants = view.variants
        for name, curve in list(self._curves.items()):
            if view.variants.get(name) is not None and view.variants[name] is not curve.variant:
                del self._curves[name]
        for lane in self.lanes.values():
            variant = view.variants.get(lane.variant)
            if variant is not None:
                lane.curve = self.curve(variant)

    def _follow_worker(
        self, record: WorkerRecord, view: ClusterView, now: float, ready: list[Lane], lost: list[Lane]
    ) -> None:
        deck = self.decks.get(record.id)
        if deck is None:
            deck = self.decks[record.id] = Deck(record)
            deck.is_reachable = record.id in self._reachable if self._reachable is not None else True
        was_ready = deck.is_ready
        deck.record = record
        missing = [lane for lane in deck.lanes.values() if lane.id not in record.instances]
        is_gone = record.state is WorkerState.GONE
        lost.extend(self._drop(lane) for lane in missing if is_gone or lane.id not in self._pending)
        for instance in record.instances.values():
            if instance.state in (InstanceState.FAILED, InstanceState.GONE):
                failed = self._follow_failure(deck, instance, now)
                if failed is not None:
                    lost.append(failed)
                continue
            lane = self._follow_instance(deck, instance, view, now)
            if lane is not None or (not was_ready and deck.lanes[instance.id].is_ready):
                ready.append(deck.lanes[instance.id])

    def _follow_failure(self, deck: Deck, instance: InstanceRecord, now: float) -> Lane | None:
        lane = deck.lanes.get(instance.id)
        if lane is None:
            return None
        if lane.instance_state is InstanceState.LOADING:
            self.load_failed(lane.variant, deck.id, instance.reason, now)
        return self._drop(lane)

    def _follow_instance(self, deck: Deck, instance: InstanceRecord, view: ClusterView, now: float) -> Lane | None:
        """The lane if it became READY now."""
        lane = deck.lanes.get(instance.id)
        if lane is None:
            lane = self._add(instance.id, instance.variant, deck, view.variants.get(instance.variant))
            if instance.state is InstanceState.LOADING:
                lane.ready_at = now + self._load_s(lane, deck)
        self._pending.pop(instance.id, None)
        before, lane.instance_state, lane.slots = lane.instance_state, instance.state, instance.slots
        deck.changed(lane)
        if instance.state is not InstanceState.READY or before is InstanceState.READY:
            return None
        lane.ready_at = min(lane.ready_at, now)
        deck.loaded.add(instance.variant)
        return lane

    def _load_s(self, lane: Lane, deck: Deck) -> float:
        profile = lane.curve.variant.profile if lane.curve else None
        if profile is None:
            return 1.0
        return profile.warm_load_s if lane.variant in deck.loaded else profile.cold_load_s

    def _add(self, id: InstanceId, variant: VariantName, deck: Deck, known: Variant | None) -> Lane:
        lane = Lane(id, variant, deck, self.curve(known) if known is not None else None)
        self.lanes[id] = lane
        deck.lanes[id] = lane
        self._by_variant.setdefault(variant, {})[id] = lane
        self._lists.pop(variant, None)
        return lane

    def _drop(self, lane: Lane) -> Lane:
        self.lanes.pop(lane.id, None)
        lane.worker.forget(lane)
        self._pending.pop(lane.id, None)
        lane.instance_state = InstanceState.GONE
        self._lists.pop(lane.variant, None)
        peers = self._by_variant.get(lane.variant)
        if peers is not None:
            peers.pop(lane.id, None)
            if not peers:
                del self._by_variant[lane.variant]
        return lane

    # -- loads this controller asked for -----------------------------------------------------------------------------

    def load_requested(self, id: InstanceId, variant: Variant, worker: WorkerId, now: float) -> Lane:
        """Count on an instance before its worker reports it. It is lost again if the worker is, or the load fails."""
        deck = self.decks[worker]
        lane = self._add(id, variant.name, deck, variant)
        lane.ready_at = now + self._load_s(lane, deck)
        lane.is_cold = True
        self._pending[id] = lane
        return lane

    def load_abandoned(self, id: InstanceId) -> Lane | None:
        """Give up on a requested load that its worker never reported."""
        lane = self._pending.get(id)
        return self._drop(lane) if lane is not None else None

    def pending(self) -> Iterable[Lane]:
        return tuple(self._pending.values())

    def load_failed(self, variant: VariantName, worker: WorkerId, reason: str, now: float) -> None:
        self._failed_loads = {pair: kept for pair, kept in self._failed_loads.items() if kept[0] > now}
        self._failed_loads[variant, worker] = (now + FAILED_LOAD_FOR_S, reason or "the load failed")

    def failed_load(self, variant: VariantName, worker: WorkerId, now: float) -> str | None:
        """Why this pair is not tried for a while; None when it may be."""
        if not self._failed_loads:
            return None
        until, reason = self._failed_loads.get((variant, worker), (now, ""))
        return reason if until > now else None

    # -- promises ----------------------------------------------------------------------------------------------------

    def reserve(self, lane: Lane, rank: int, items: int) -> None:
        lane.reserved[rank] += items
        lane.worker.changed(lane)

    def release(self, lane: Lane, rank: int, items: int) -> None:
        lane.reserved[rank] -= items
        if lane.reserved[rank] < 0:
            raise AssertionError(f"released more than was reserved on {lane.id}")
        lane.worker.changed(lane)

    def sent(self, lane: Lane, number: int, items: int, now: float) -> Flight:
        if lane.curve is None:
            raise AssertionError(f"a batch was sent to {lane.id}, whose variant is not known")
        expected = lane.curve.mean_s[items] * self.correction(lane.variant, items)
        flight = lane.flights[number] = Flight(number, items, expected, now)
        lane.worker.changed(lane)
        return flight

    def started(self, lane: Lane, number: int, now: float) -> None:
        flight = lane.flights.get(number)
        if flight is not None:
            flight.started_at = now
            lane.worker.changed(lane)

    def done(self, lane: Lane, number: int) -> Flight | None:
        lane.is_cold = False
        flight = lane.flights.pop(number, None)
        lane.worker.changed(lane)
        return flight

    def reported_load(self, instance: InstanceId, batches: int, now: float) -> None:
        """A worker's count of the batches an instance holds; what is not ours is other controllers'."""
        lane = self.lanes.get(instance)
        if lane is not None:
            lane.foreign = max(0, batches - len(lane.flights))
            lane.foreign_until = now + FOREIGN_FOR_S

    # -- what is observed --------------------------------------------------------------------------------------------

    def observed(self, variant: VariantName, now: float) -> VariantLoad:
        lanes = [lane for lane in self.lanes_of(variant) if lane.is_usable and lane.is_ready]
        outstanding = sum(sum(lane.reserved) + sum(f.items for f in lane.flights.values()) for lane in lanes)
        window = self._windows.get(variant)
        if window is None:
            return VariantLoad(len(lanes), outstanding, 0.0, None)
        window.roll(now)
        mean_s = window.last_seconds / window.last_runs if window.last_runs else None
        return VariantLoad(len(lanes), outstanding, float(window.last_items), mean_s)

    def observed_batch(self, lane: Lane, items: int, staged_s: float, run_s: float, now: float) -> None:
        """Count a finished batch for its variant's load."""
        window = self._windows.get(lane.variant)
        if window is None:
            window = self._windows[lane.variant] = _Window(now)
        window.roll(now)
        window.items += items
        window.runs += 1
        window.seconds += staged_s + run_s

    def observed_run(self, lane: Lane, items: int, run_s: float) -> None:
        """Correct the profile by what the batch really took: a decaying ratio per variant and power of two."""
        if lane.curve is None or items >= len(lane.curve.mean_s) or run_s <= 0:
            return
        low, high = CORRECTION_BOUNDS
        ratio = min(high, max(low, run_s / lane.curve.mean_s[items]))
        buckets = self._corrections.setdefault(lane.variant, {})
        bucket = items.bit_length()
        before = buckets.get(bucket, 1.0)
        buckets[bucket] = before + CORRECTION_WEIGHT * (ratio - before)

    def observed_hop(self, lane: Lane, hop_s: float) -> None:
        low, high = HOP_BOUNDS_S
        deck = lane.worker
        deck.hop_s += HOP_WEIGHT * (min(high, max(low, hop_s)) - deck.hop_s)

    def correction(self, variant: VariantName, items: int) -> float:
        buckets = self._corrections.get(variant)
        return buckets.get(items.bit_length(), 1.0) if buckets else 1.0

    @property
    def least_overhead_s(self) -> float:
        """The best that any READY worker adds: what no query can be faster than."""
        return min((d.hop_s for d in self.decks.values() if d.is_ready), default=self._overhead_s)

    # -- prediction --------------------------------------------------------------------------------------------------

    def curve(self, variant: Variant) -> Curve | None:
        """None for a variant without a profile."""
        found = self._curves.get(variant.name)
        if found is None:
            if variant.profile is None:
                return None
            found = self._curves[variant.name] = Curve(variant, self._overhead_s)
        return found

    def lanes_of(self, variant: VariantName) -> tuple[Lane, ...]:
        found = self._lists.get(variant)
        if found is None:
            found = self._lists[variant] = tuple(self._by_variant.get(variant, {}).values())
        return found

    def ready_decks(self) -> Iterator[Deck]:
        return (deck for deck in self.decks.values() if deck.is_ready)

    def predict(self, lane: Lane, rank: int, items: int, now: float) -> float:
        """When the answer to `items` more of this priority would be back, on the controller's clock.

        The start is the later of "the instance is free" and "enough cores are". Work reserved ahead of it (same or
        higher priority) runs in batches of the preferred size at the mean latency; the batch that it would join counts
        with its p95. Everything is corrected by what is being observed.
        """
        curve = lane.curve
        if curve is None:
            return float("inf")
        deck = lane.worker
        start = lane.free_at(now) if (lane.flights or lane.ready_at > now or lane.foreign) else now
        if lane.instance_state is InstanceState.LOADING:
            start = max(start, lane.free_at(now))
        if deck.busy:
            start = max(start, deck.cores_free_at(lane, curve.variant.threads, now))
        reserved = lane.reserved
        ahead = reserved[0] + (reserved[1] if rank >= 1 else 0) + (reserved[2] if rank >= 2 else 0)
        return start + self._work_s(curve, ahead, items) + deck.hop_s

    def at_best(self, variant: Variant, items: int, now: float) -> float:
        """Before this no instance could answer, however idle: what lets a comparison leave slow variants out."""
        curve = self.curve(variant)
        if curve is None:
            return float("inf")
        corrections = self._corrections.get(variant.name)
        factor = min(1.0, *corrections.values()) if corrections else 1.0
        return now + curve.least_s[items] * factor + HOP_BOUNDS_S[0]

    def predict_cold(self, variant: Variant, deck: Deck, items: int, now: float) -> float:
        """As `predict`, for an instance that would have to be loaded first."""
        curve, profile = self.curve(variant), variant.profile
        if curve is None or profile is None:
            return float("inf")
        load_s = profile.warm_load_s if variant.name in deck.loaded else profile.cold_load_s
        start = max(now + load_s, deck.cores_free_at(None, variant.threads, now))
        return start + self._work_s(curve, 0, items) + deck.hop_s

    def place_for(self, variant: Variant, now: float) -> Deck | None:
        """Where a variant would be loaded: the least utilised READY worker without an instance of it that could free
        the memory and did not just fail to load it; None when there is none."""
        taken = {lane.worker.id for lane in self.lanes_of(variant.name) if lane.is_usable}
        best: tuple[float, WorkerId] | None = None
        for deck in self.ready_decks():
            if deck.id in taken or not self.could_hold(deck, variant):
                continue
            if self.failed_load(variant.name, deck.id, now) is not None:
                continue
            this = (deck.utilisation(now), deck.id)
            if best is None or this < best:
                best = this
        return self.decks[best[1]] if best is not None else None

    def could_hold(self, deck: Deck, variant: Variant) -> bool:
        """By memory that is free or could be freed. Cores too: a variant never gets more threads than a worker has."""
        record = deck.record
        return variant.threads <= record.cores and deck.held_bytes() + variant.memory_bytes <= record.memory_bytes

    def _work_s(self, curve: Curve, ahead: int, items: int) -> float:
        total = ahead + items
        size = curve.preferred if curve.preferred > items else items
        wait_s = 0.0
        if total > size:
            batches = (total - 1) // size
            total = max(total - batches * size, items)
            wait_s = batches * curve.mean_s[size]
        return (wait_s + curve.p95_s[total]) * self.correction(curve.variant.name, total)

    def is_settled(self) -> bool:
        """Whether nothing is promised and nothing is on its way."""
        return all(lane.is_idle for lane in self.lanes.values())
