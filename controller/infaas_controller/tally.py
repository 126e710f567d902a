"""Counters per variant since the controller started: what `GET .../stats` shows."""

from __future__ import annotations

from collections.abc import Container, Mapping

from infaas.domain.ids import VariantName
from infaas_controller.ports import VariantStats


class Counts:
    """Of one variant."""

    __slots__ = (
        "batches", "executions", "fail_s", "failures", "items", "last_at", "queue_s", "run_s", "success_s", "successes",
    )  # fmt: skip

    def __init__(self) -> None:
        self.items = self.executions = self.successes = self.failures = 0
        self.queue_s = self.run_s = self.success_s = self.fail_s = self.last_at = 0.0
        self.batches: dict[int, tuple[int, float]] = {}

    def answered(self, items: int, queue_s: float, run_s: float, total_s: float, wall: float) -> None:
        self.items += items
        self.successes += 1
        self.queue_s += queue_s
        self.run_s += run_s
        self.success_s += total_s
        self.last_at = wall

    def failed(self, total_s: float) -> None:
        self.failures += 1
        self.fail_s += total_s


class Tally:
    """Written by the dispatcher only."""

    def __init__(self) -> None:
        self._by_variant: dict[VariantName, Counts] = {}

    def batch_ran(self, variant: VariantName, items: int, run_s: float) -> None:
        counts = self.of(variant)
        counts.executions += 1
        runs, seconds = counts.batches.get(items, (0, 0.0))
        counts.batches[items] = (runs + 1, seconds + run_s)

    def forget_but(self, known: Container[VariantName]) -> None:
        """Nobody can ask for the counts of a variant that is no longer in the catalogue."""
        self._by_variant = {name: counts for name, counts in self._by_variant.items() if name in known}

    def snapshot(self) -> Mapping[VariantName, VariantStats]:
        return {
            name: VariantStats(
                inference_count=c.items,
                execution_count=c.executions,
                success_count=c.successes,
                fail_count=c.failures,
                queue_s=c.queue_s,
                run_s=c.run_s,
                success_s=c.success_s,
                fail_s=c.fail_s,
                last_inference_at=c.last_at,
                batches=dict(c.batches),
            )
            for name, c in self._by_variant.items()
        }

    def of(self, variant: VariantName) -> Counts:
        found = self._by_variant.get(variant)
        if found is None:
            found = self._by_variant[variant] = Counts()
        return found
