"""The ledger: this controller's own promises and dispatches, laid over the view.

The view says which instances exist; the ledger says what each of them has been promised, and from that, the profiles
and what is being observed predicts when an answer would come. Totals are sums over live entries and return to nothing
when these do.
"""

from __future__ import annotations

import math

from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState
from infaas.domain.variant import PROCESS_START_S, Isolation, Variant
from infaas_controller.decide.curve import Curve
from infaas_controller.decide.fair import ahead_of
from infaas_controller.lanes import RANKS, URGENCIES, Deck, Flight, Lane
from infaas_controller.lines import Lines
from infaas_controller.observed import DEFAULT_HOP_S, HOP_BOUNDS_S, VariantLoad
from infaas_controller.roster import Roster

LOOK_BESIDE_EVERY_S = 0.1
KEYS_KEPT = 1_000
FOREIGN_FOR_S = 1.5
"""How long a worker's word on other controllers' work is believed: its next report comes sooner."""


class Ledger(Roster):
    """Takes reservations and dispatches, predicts completions."""

    def __init__(self, hop_s: float = DEFAULT_HOP_S, *, needs_streams: bool = False) -> None:
        super().__init__(hop_s, needs_streams=needs_streams)
        self.lines = Lines()
        self.unread_s = 0.0
        """How long a query may have been here before it was read, because the loop waited for a core."""
        self._looked_beside: dict[int, float] = {}

    # -- promises ----------------------------------------------------------------------------------------------------

    def reserve(self, lane: Lane, urgency: int, items: int) -> None:
        for each in range(urgency, URGENCIES):
            lane.ahead[each] += items
        lane.worker.changed(lane)

    def release(self, lane: Lane, urgency: int, items: int) -> None:
        before = lane.ahead[urgency - 1] if urgency else 0
        for each in range(urgency, URGENCIES):
            lane.ahead[each] -= items
        if lane.ahead[urgency] < before:
            raise AssertionError(f"released more than was reserved on {lane.id}")
        lane.worker.changed(lane)

    def class_came(self, lane: Lane, rank: int) -> None:
        """The first promise of a class of queries."""
        for each in range(rank, RANKS):
            lane.classes[each] += 1

    def class_left(self, lane: Lane, rank: int) -> None:
        for each in range(rank, RANKS):
            lane.classes[each] -= 1

    def sent(self, lane: Lane, number: int, items: int, now: float) -> Flight:
        if lane.curve is None:
            raise AssertionError(f"a batch was sent to {lane.id}, whose variant is not known")
        expected = lane.curve.mean_s[items] * self.seen.usual(lane.variant, items, now)
        flight = lane.flights[number] = Flight(number, items, expected, now)
        lane.worker.changed(lane)
        return flight

    def started(self, lane: Lane, number: int, now: float) -> None:
        flight = lane.flights.get(number)
        if flight is not None:
            flight.started_at = now
            lane.worker.changed(lane)

    def done(self, lane: Lane, number: int) -> Flight | None:
        flight = lane.flights.pop(number, None)
        lane.worker.changed(lane)
        return flight

    def reported_load(self, lane: Lane, items: int, now: float) -> None:
        """A worker's count of the items an instance holds; what is not ours is other controllers'."""
        own = sum([flight.items for flight in lane.flights.values()])
        self.others_hold(lane, max(0, items - own), now)

    def others_hold(self, lane: Lane, items: int, now: float) -> None:
        """So many items of other controllers are at the instance."""
        if items or lane.foreign:
            lane.foreign = items
            lane.foreign_until = now + FOREIGN_FOR_S
            lane.worker.changed(lane)

    # -- what is observed --------------------------------------------------------------------------------------------

    def observed(self, variant: VariantName, now: float) -> VariantLoad:
        lanes = [lane for lane in self.lanes_of(variant) if lane.is_usable and lane.is_ready]
        outstanding = sum(lane.ahead[-1] + sum(f.items for f in lane.flights.values()) for lane in lanes)
        return self.seen.load(variant, len(lanes), outstanding, now)

    def observed_batch(
        self, lane: Lane, flight: Flight, items: int, staged_s: float, run_s: float, now: float, run_items: int = 0
    ) -> None:
        """Learn from a batch of which `items` ran, in a run of `run_items` if others shared it. What it took beyond
        waiting for its turn and running, from the arrival of its last query on, is the way there and back."""
        self.seen.count(lane.variant, items, staged_s + run_s, now)
        if lane.curve is not None:
            whole = min(max(items, run_items), lane.curve.hard_limit)
            self.seen.ran(lane.curve, whole, run_s, now)
            is_full = flight.is_next and (flight.has_more or whole * 2 >= lane.curve.preferred)
            lane.pace.add(items, now, is_full=is_full)
        lane.worker.hop.add(now - flight.sent_at + flight.gathered_s - staged_s - run_s, now)

    @property
    def least_overhead_s(self) -> float:
        """The best that any READY worker adds: what no query can be faster than."""
        return min((d.hop.least_s for d in self.decks.values() if d.is_ready), default=self._hop_s)

    # -- prediction --------------------------------------------------------------------------------------------------

    def predict(self, lane: Lane, urgency: int, items: int, now: float, part: float | None = None) -> float:
        """When the answer to `items` more of this urgency would be back, on the controller's clock.

        The start is the later of "the instance is free" and "enough cores are". Work reserved ahead of it (as urgent or
        more) runs in batches of the preferred size at the mean latency, at least one for each class of queries; the
        batch that it would join counts with its p95. Everything is corrected by what is being observed, and nobody is
        promised to get through a queue faster than those before it did. `part` is how much of what waits at its
        priority goes ahead of it where tenants share that (`Line.part`).
        """
        curve = lane.curve
        if curve is None:
            return float("inf")
        deck = lane.worker
        start = lane.free_at(now) if (lane.flights or lane.foreign or lane.ready_at > now) else now
        if lane.instance_state is InstanceState.LOADING:
            start = max(start, lane.free_at(now))
        if deck.busy:
            start = max(start, deck.cores_free_at(lane, curve.variant.threads, now))
        ahead = lane.ahead[urgency] if part is None else ahead_of(lane.ahead, urgency, part)
        at = start + self._work_s(curve, ahead, items, lane.classes[urgency >> 1], now)
        if ahead:
            flying = sum([flight.items for flight in lane.flights.values()])
            run_s = curve.p95_s[items] * self.seen.promised(lane.variant, items, now)
            at = max(at, lane.pace.end_of(ahead + flying, now) + run_s)
        return at + self.way_s(deck, now)

    def way_s(self, deck: Deck, now: float) -> float:
        """To a worker and back, and what passed before a query was read: nothing of that while nothing runs there."""
        return deck.hop.at(now) + (self.unread_s if deck.busy else 0.0)

    def at_best(self, variant: Variant, items: int, now: float) -> float:
        """Before this no instance could answer, however idle: what lets a comparison leave slow variants out."""
        curve = self.curve(variant)
        if curve is None:
            return float("inf")
        return now + curve.least_s[items] * self.seen.least_promised(variant.name) + HOP_BOUNDS_S[0]

    def predict_cold(self, variant: Variant, deck: Deck, items: int, now: float) -> float:
        """As `predict`, for an instance that would have to be loaded first."""
        curve, profile = self.curve(variant), variant.profile
        if curve is None or profile is None:
            return float("inf")
        load_s = profile.warm_load_s if variant.name in deck.loaded else profile.cold_load_s
        if variant.isolation is Isolation.PROCESS:
            load_s += PROCESS_START_S
        start = max(now + load_s, deck.cores_free_at(None, variant.threads, now))
        return start + self._work_s(curve, 0, items, 0, now) + deck.hop.at(now)

    def place_for(self, variant: Variant, now: float, *, insists: bool = False) -> Deck | None:
        """Where a variant would be loaded: the least utilised READY worker without an instance of it that could free
        the memory and did not just fail to load it, nor, unless somebody `insists`, replaced it by another; None when
        there is none. One that is to have a process of its own may come beside one that has none."""
        needs_process = variant.isolation is Isolation.PROCESS
        lanes = self.lanes_of(variant.name)
        taken = {lane.worker.id for lane in lanes if lane.is_usable and (lane.is_isolated or not needs_process)}
        best: tuple[float, WorkerId] | None = None
        for deck in self.ready_decks():
            if deck.id in taken or not self.could_hold(deck, variant):
                continue
            if self.failed_load(variant.name, deck.id, now) is not None:
                continue
            if not insists and self.is_given_up(variant.name, deck.id):
                continue
            this = (deck.utilisation(now), deck.id)
            if best is None or this < best:
                best = this
        return self.decks[best[1]] if best is not None else None

    def places_beside(self, key: int, now: float) -> list[tuple[Deck, int]]:
        """Workers that exchange variants, the least utilised first, with the memory that nothing holds there. Nothing
        for those who ask as `key` a moment after others: what was refused a thousand times a second is looked for a
        few times."""
        if not self.exchanging or now - self._looked_beside.get(key, -math.inf) < LOOK_BESIDE_EVERY_S:
            return []
        if len(self._looked_beside) >= KEYS_KEPT:
            self._looked_beside.clear()
        self._looked_beside[key] = now
        found = [deck for deck in self.ready_decks() if deck.id in self.exchanging]
        found.sort(key=lambda deck: (deck.utilisation(now), deck.id))
        return [(deck, deck.record.memory_bytes - deck.set_aside_bytes()) for deck in found]

    def could_hold(self, deck: Deck, variant: Variant) -> bool:
        """By memory that is free or could be freed. Cores too: a variant never gets more threads than a worker has."""
        record = deck.record
        return variant.threads <= record.cores and deck.held_bytes() + variant.memory_bytes <= record.memory_bytes

    def _work_s(self, curve: Curve, ahead: int, items: int, classes: int, now: float) -> float:
        """`classes` hold what is ahead; the one that these items join may be among them."""
        total = ahead + items
        size = curve.preferred if curve.preferred > items else items
        name = curve.variant.name
        batches = (total - 1) // size if total > size else 0
        if classes - 1 > batches < ahead:
            batches = min(classes - 1, ahead)
            each = -(-ahead // batches)
            wait_s = batches * curve.mean_s[each] * self.seen.usual(name, each, now)
            return wait_s + curve.p95_s[items] * self.seen.promised(name, items, now)
        wait_s = 0.0
        if batches:
            total = max(total - batches * size, items)
            wait_s = batches * curve.mean_s[size] * self.seen.usual(name, size, now)
        return wait_s + curve.p95_s[total] * self.seen.promised(name, total, now)

    def is_settled(self) -> bool:
        """Whether nothing is promised and nothing is on its way."""
        return all(lane.is_idle for lane in self.lanes.values())
