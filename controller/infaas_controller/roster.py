"""Which instances there are, as this controller knows them: the view's, and those it has asked for itself.

Lanes (one per instance) follow the view worker by worker, so that a change costs what changed. What they are promised
is the ledger's.
"""

from __future__ import annotations

from collections.abc import Iterator

from infaas.domain.cluster import ClusterView, InstanceRecord, WorkerRecord
from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.variant import PROCESS_START_S, Variant
from infaas_controller.decide.curve import Curve
from infaas_controller.lanes import Deck, Lane
from infaas_controller.observed import DEFAULT_HOP_S, Observations

FAILED_LOAD_FOR_S = 30.0
HOPS_KEPT = 1_000
"""Of workers that are gone, in case they come back."""


class Roster:
    """Follows the view and the loads that were asked for."""

    def __init__(self, hop_s: float = DEFAULT_HOP_S, *, needs_streams: bool = False) -> None:
        self._hop_s = hop_s
        self._reachable: set[WorkerId] | None = set() if needs_streams else None
        self.decks: dict[WorkerId, Deck] = {}
        self.lanes: dict[InstanceId, Lane] = {}
        self.seen = Observations(hop_s)
        self._by_variant: dict[VariantName, dict[InstanceId, Lane]] = {}
        self._lists: dict[VariantName, tuple[Lane, ...]] = {}
        self._pending: dict[InstanceId, Lane] = {}
        self._curves: dict[VariantName, Curve] = {}
        self._variants: object = None
        self._failed_loads: dict[tuple[VariantName, WorkerId], tuple[float, str]] = {}
        self._given_up: dict[WorkerId, frozenset[VariantName]] = {}
        self.given_up: frozenset[VariantName] = frozenset()
        """Variants that some worker has replaced by others."""
        self.exchanging: set[WorkerId] = set()
        """Workers that let one variant take over from another."""

    # -- what is there -----------------------------------------------------------------------------------------------

    def curve(self, variant: Variant) -> Curve | None:
        """None for a variant without a profile."""
        found = self._curves.get(variant.name)
        if found is None:
            if variant.profile is None:
                return None
            found = self._curves[variant.name] = Curve(variant)
        return found

    def lanes_of(self, variant: VariantName) -> tuple[Lane, ...]:
        found = self._lists.get(variant)
        if found is None:
            found = self._lists[variant] = tuple(self._by_variant.get(variant, {}).values())
        return found

    def ready_decks(self) -> Iterator[Deck]:
        return (deck for deck in self.decks.values() if deck.is_ready)

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

    def instance_died(self, id: InstanceId) -> Lane | None:
        """Forget an instance that died under its work, and return its lane; None when it is gone already."""
        lane = self.lanes.get(id)
        return self._drop(lane) if lane is not None else None

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
        self._curves = {name: curve for name, curve in self._curves.items() if view.variants.get(name) is curve.variant}
        self.seen.forget_variants_but({*view.variants, *self._by_variant})
        for lane in self.lanes.values():
            variant = view.variants.get(lane.variant)
            if variant is not None:
                lane.curve = self.curve(variant)

    def _follow_worker(
        self, record: WorkerRecord, view: ClusterView, now: float, ready: list[Lane], lost: list[Lane]
    ) -> None:
        deck = self.decks.get(record.id)
        if deck is None:
            deck = self.decks[record.id] = Deck(record, self.seen.hop_of(record.id))
            if self.seen.hops > HOPS_KEPT + len(self.decks):
                self.seen.forget_workers_but(set(self.decks))
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
            lane.isolation = instance.isolation
            if instance.state is InstanceState.LOADING:
                lane.ready_at = now + self.load_s(lane)
        self._pending.pop(instance.id, None)
        before, lane.instance_state, lane.slots = lane.instance_state, instance.state, instance.slots
        lane.isolation = instance.isolation
        deck.changed(lane)
        if instance.state is not InstanceState.READY or before is InstanceState.READY:
            return None
        if before is InstanceState.LOADING and lane.ready_at:
            lane.ready_at = now
        deck.loaded.add(instance.variant)
        return lane

    def load_s(self, lane: Lane) -> float:
        """What loading it is expected to take, all in all."""
        profile = lane.curve.variant.profile if lane.curve else None
        if profile is None:
            return 1.0
        load_s = profile.warm_load_s if lane.variant in lane.worker.loaded else profile.cold_load_s
        return load_s + (PROCESS_START_S if lane.is_isolated else 0.0)

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
        lane.isolation = variant.isolation
        lane.ready_at = now + self.load_s(lane)
        self._pending[id] = lane
        return lane

    def load_abandoned(self, id: InstanceId) -> Lane | None:
        """Give up on a requested load that its worker never reported."""
        lane = self._pending.get(id)
        return self._drop(lane) if lane is not None else None

    def load_failed(
        self, variant: VariantName, worker: WorkerId, reason: str, now: float, for_s: float = FAILED_LOAD_FOR_S
    ) -> None:
        self._failed_loads = {pair: kept for pair, kept in self._failed_loads.items() if kept[0] > now}
        self._failed_loads[variant, worker] = (now + for_s, reason or "the load failed")

    def exchanged_at(self, worker: WorkerId, variants: frozenset[VariantName] | None) -> None:
        """What a worker has replaced by other variants, by its last word. None: it exchanges none, or is gone."""
        (self.exchanging.discard if variants is None else self.exchanging.add)(worker)
        if variants:
            self._given_up[worker] = variants
        else:
            self._given_up.pop(worker, None)
        self.given_up = frozenset().union(*self._given_up.values())

    def is_given_up(self, variant: VariantName, worker: WorkerId) -> bool:
        return variant in self.given_up and variant in self._given_up.get(worker, ())

    def failed_load(self, variant: VariantName, worker: WorkerId, now: float) -> str | None:
        """Why this pair is not tried for a while; None when it may be."""
        if not self._failed_loads:
            return None
        until, reason = self._failed_loads.get((variant, worker), (now, ""))
        return reason if until > now else None
