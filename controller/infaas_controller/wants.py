"""Counts what the queries that were sent to each instance would have taken instead. On the query path, so a batch adds
a few numbers, and nothing while nobody asks.
"""

from __future__ import annotations

from collections.abc import Sequence

from infaas.domain.ids import VariantName, WorkerId
from infaas.domain.query import Objective
from infaas_controller.eligibility import EligibilityClass
from infaas_controller.lanes import Lane
from infaas_controller.queues import Ticket


class Want:
    """Of the queries that one variant on one worker was sent, since they were counted last."""

    __slots__ = ("_last", "admitted", "items", "latency_s", "objectives", "queries")

    def __init__(self, allowed: frozenset[VariantName]) -> None:
        self.admitted = allowed
        """Variants that every one of them admits."""
        self.items = 0
        self.queries = 0
        self.latency_s = float("inf")
        """The tightest of them."""
        self.objectives: set[Objective] = set()
        self._last = allowed

    def add(
        self, allowed: frozenset[VariantName], items: int, queries: int, latency_s: float, objective: Objective
    ) -> None:
        self.objectives.add(objective)
        self.items += items
        self.queries += queries
        self.latency_s = min(self.latency_s, latency_s)
        if allowed is not self._last:
            self._last = allowed
            self.admitted &= allowed


class Wants:
    def __init__(self) -> None:
        self.is_on = False
        """Whether some worker asks."""
        self._found: dict[tuple[WorkerId, VariantName], Want] = {}

    def sent(self, lane: Lane, eligibility: EligibilityClass, batch: Sequence[Ticket], items: int) -> None:
        """`batch` is of one class, and not empty."""
        key = lane.worker.id, lane.variant
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = Want(eligibility.allowed)
        latency_s = min([ticket.deadline - ticket.query.arrived_at for ticket in batch])
        found.add(eligibility.allowed, items, len(batch), latency_s, batch[0].query.requirements.objective)

    def take(self) -> dict[WorkerId, dict[VariantName, Want]]:
        """Counting begins anew."""
        found, self._found = self._found, {}
        by_worker: dict[WorkerId, dict[VariantName, Want]] = {}
        for (worker, variant), want in found.items():
            by_worker.setdefault(worker, {})[variant] = want
        return by_worker
