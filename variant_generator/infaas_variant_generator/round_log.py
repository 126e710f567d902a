"""The rounds of one measurement in their order, and which of them count: pure but for growing."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from infaas.errors import InvalidError
from infaas_variant_generator import rounds
from infaas_variant_generator.fit import Samples
from infaas_variant_generator.pace import is_slow


@dataclass(frozen=True, slots=True)
class Round:
    batch: int
    is_spoiled: bool
    """By a stall."""
    reference_s: float
    """The longest right before and right after it."""
    runs_s: list[float]
    own_s: list[float]


class RoundLog:
    """The rounds so far, and what counts of them. A better reference than any before may tell that earlier rounds ran
    while the host was slow."""

    def __init__(self, batches: tuple[int, ...], best_reference_s: float | None) -> None:
        self.rounds: list[Round] = []
        self.best_reference_s = best_reference_s
        self.tallies = {batch: rounds.Tally() for batch in batches}

    def add(self, made: Round) -> None:
        self.rounds.append(made)
        if self.best_reference_s is not None and made.reference_s >= self.best_reference_s:
            self._count(made)
            return
        self.best_reference_s = made.reference_s
        self.tallies = {batch: rounds.Tally() for batch in self.tallies}
        for each in self.rounds:
            self._count(each)

    def seen_reference_s(self) -> float | None:
        """The best of these rounds, whatever was known before."""
        return min((made.reference_s for made in self.rounds), default=None)

    def slow_rounds(self) -> int:
        return sum(map(self._is_slow, self.rounds))

    def samples(self) -> Samples:
        """Raises InvalidError without any."""
        if not self.rounds:
            raise InvalidError("nothing was measured")
        counts = [len(made.runs_s) for made in self.rounds]
        return Samples(
            batch=np.repeat(np.array([made.batch for made in self.rounds], dtype=np.int64), counts),
            round=np.repeat(np.arange(len(self.rounds), dtype=np.int64), counts),
            seconds=np.array([value for made in self.rounds for value in made.runs_s], dtype=np.float64),
            is_spoiled=np.repeat(np.array([made.is_spoiled for made in self.rounds], dtype=np.bool_), counts),
            is_slow=np.repeat(np.array(list(map(self._is_slow, self.rounds)), dtype=np.bool_), counts),
            own_seconds=np.array([value for made in self.rounds for value in made.own_s], dtype=np.float64),
        )

    def _count(self, made: Round) -> None:
        tally = self.tallies[made.batch]
        self.tallies[made.batch] = rounds.with_round(tally, made.runs_s, is_spoiled=self._is_spoiled(made))

    def _is_spoiled(self, made: Round) -> bool:
        return made.is_spoiled or self._is_slow(made)

    def _is_slow(self, made: Round) -> bool:
        return self.best_reference_s is not None and is_slow(made.reference_s, self.best_reference_s)
