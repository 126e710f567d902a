"""What a policy sees when a query arrives: the admitted variants, and for each the best way to run it now.

An option is a variant on a place: an instance that is there or loading, or a worker that would load it first. Options
carry the ledger's predicted completion; policies compare them, they do not compute them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from infaas.domain.ids import InstanceId
from infaas.domain.query import Query
from infaas.domain.variant import Isolation, Variant
from infaas_controller.decide.candidates import Admission
from infaas_controller.lanes import Deck, Lane, urgency_of
from infaas_controller.ledger import Ledger

SAMPLE_ABOVE = 64
"""With more instances of one variant than this, a sample of half as many is compared instead of all."""


def isolated(variant: Variant) -> Variant:
    """The same variant in a process of its own."""
    return variant if variant.isolation is Isolation.PROCESS else replace(variant, isolation=Isolation.PROCESS)


class Option(NamedTuple):
    """Run `variant` on `lane`; when that is None, load it on `deck` first. `at` is the predicted completion."""

    variant: Variant
    lane: Lane | None
    deck: Deck
    at: float


class Looked(NamedTuple):
    """A trace of one comparison; `explain` makes candidates of it when somebody asks. `option` None: no place."""

    variant: Variant
    option: Option | None
    is_given_up: bool = False
    """Whether it would be loaded where a worker has replaced it by another."""


class Situation:
    """One query at one moment. `looked` grows with what policies compare."""

    __slots__ = (
        "admission", "draw", "excluded", "insists", "late_at", "ledger", "looked", "needs_process", "now", "part",
        "query", "urgency",
    )  # fmt: skip

    def __init__(
        self,
        query: Query,
        admission: Admission,
        ledger: Ledger,
        now: float,
        draw: float,
        excluded: frozenset[InstanceId] = frozenset(),
        *,
        late_at: frozenset[InstanceId] = frozenset(),
        needs_process: bool = False,
    ) -> None:
        self.query = query
        self.admission = admission
        self.ledger = ledger
        self.now = now
        self.draw = draw
        """A random number in [0, 1) for policies that sample."""
        self.excluded = excluded
        """Instances this query is not given to again: they have just failed it, or would be late."""
        self.late_at = late_at
        """Those of them where it waited until its turn would have come too late."""
        self.needs_process = needs_process
        """Whether only an instance with a process of its own may run it (SURFACE rule 15)."""
        self.urgency = urgency_of(query.requirements)
        self.part = ledger.lines.part(admission.task, self.urgency, query.requirements.tenant, query.items)
        """Of what waits at its priority, how much goes ahead of it; None: all of it that is as urgent."""
        self.looked: list[Looked] = []
        self.insists = False
        """Whether a variant may be loaded where its worker has replaced it: nothing else is on time."""

    def best(self, variant: Variant) -> Option | None:
        """The place where this variant would answer first. Loading another instance of it is an option only when no
        instance that is there, or loading already, would meet the deadline."""
        option = self.best_live(variant)
        if option is None or option.at > self.query.deadline:
            cold = self.best_cold(variant)
            if cold is not None and (option is None or cold.at <= self.query.deadline):
                option = cold
        is_given_up = option is None and not self.insists and variant.name in self.ledger.given_up
        self.looked.append(Looked(variant, option, is_given_up))
        return option

    def best_live(self, variant: Variant) -> Option | None:
        """Least predicted completion among its instances, READY or LOADING; equal ones by id."""
        lanes = self.ledger.lanes_of(variant.name)
        found, at = self._soonest(self._sample(lanes))
        if found is None and len(lanes) > SAMPLE_ABOVE:
            found, at = self._soonest(lanes)  # the sample met none that may run it
        return Option(variant, found, found.worker, at) if found is not None else None

    def best_cold(self, variant: Variant) -> Option | None:
        """On the least utilised READY worker that has no instance of it and whose memory could hold it; None also when
        even a warm load would miss the deadline everywhere."""
        profile = variant.profile
        if profile is None or self.now + profile.warm_load_s > self.query.deadline:
            return None
        wanted = self.as_loaded(variant)
        deck = self.ledger.place_for(wanted, self.now, insists=self.insists)
        if deck is None:
            return None
        return Option(variant, None, deck, self.ledger.predict_cold(wanted, deck, self.query.items, self.now))

    def _soonest(self, lanes: Iterable[Lane]) -> tuple[Lane | None, float]:
        found: Lane | None = None
        at = float("inf")
        predict, urgency, items, now = self.ledger.predict, self.urgency, self.query.items, self.now
        part = self.part
        is_choosy = self.needs_process or bool(self.excluded)
        for lane in lanes:
            if not lane.is_usable or (is_choosy and not self.can_use(lane)):
                continue
            this = predict(lane, urgency, items, now, part)
            if this < at or (this == at and found is not None and lane.id < found.id):
                found, at = lane, this
        return found, at

    def can_use(self, lane: Lane) -> bool:
        """Whether this query may run on an instance at all."""
        return lane.is_usable and lane.id not in self.excluded and (lane.is_isolated or not self.needs_process)

    def as_loaded(self, variant: Variant) -> Variant:
        """The variant as it would be loaded for this query."""
        return isolated(variant) if self.needs_process else variant

    def _sample(self, lanes: Sequence[Lane]) -> Iterable[Lane]:
        count = len(lanes)
        if count <= SAMPLE_ABOVE:
            return lanes
        step = count / (SAMPLE_ABOVE // 2)
        start = self.draw * count
        return [lanes[int(start + step * i) % count] for i in range(SAMPLE_ABOVE // 2)]
