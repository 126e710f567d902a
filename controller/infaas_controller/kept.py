"""What is kept of decisions until somebody asks: next to nothing is done for each of them, and of a batch's usual
answers what they have in common is kept once. Nothing here holds a query: thousands of inputs would stay in memory.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from infaas.domain.ids import DecisionId
from infaas.domain.query import ANSWERED, Candidate, Choice, Requirements, TraceContext
from infaas_controller.decide.account import candidates
from infaas_controller.decide.candidates import Admission
from infaas_controller.decide.select import Selected
from infaas_controller.ports import Outcome, Ran


class Trace(NamedTuple):
    """What candidates are made of."""

    selected: Selected
    deadline: float
    now: float

    def candidates(self, limit: int | None = None) -> tuple[Candidate, ...]:
        return candidates(self.selected, self.deadline, self.now, limit)

    @property
    def size(self) -> int:
        """How many candidates there are in all."""
        return len(self.selected.admission.rulings)


class Kept(msgspec.Struct, eq=False):
    """One decision. Nothing of it changes any more but how many it stands for."""

    number: int
    outcome: Outcome
    request_id: str
    wall: float
    """Seconds since the epoch."""
    handle: str
    admission: Admission | None
    policy: str
    requirements: Requirements
    code: str
    reason: str
    predicted_ms: float | None
    was_sent: bool
    batch_items: int
    trace: TraceContext | None
    selected: Selected | None
    deadline: float
    selected_at: float
    alike: int = 0

    @property
    def choosing(self) -> Trace | None:
        return None if self.selected is None else Trace(self.selected, self.deadline, self.selected_at)

    @property
    def observed_ms(self) -> float | None:
        return self.outcome.total_s * 1e3 if self.code == ANSWERED else None

    def __len__(self) -> int:
        return 1

    def of(self, number: int) -> Kept | None:
        return self if self.number == number else None

    def newest(self) -> Iterator[Kept]:
        yield self


class Row(NamedTuple):
    """What an answer of a batch has to itself."""

    number: int
    request_id: str
    handle: str
    requirements: Requirements
    trace: TraceContext | None
    admission: Admission | None
    policy: str
    selected: Selected | None
    choice: Choice | None
    arrived_at: float
    deadline: float
    selected_at: float
    decided_at: float
    decide_s: float
    queue_s: float


class KeptTogether:
    """Usual answers (`ports.Together`) of one batch."""

    __slots__ = ("_batch_items", "_ended_at", "_prefix", "_ran", "_rows", "_wall")

    def __init__(
        self,
        prefix: str,
        rows: Sequence[tuple[object, ...]],
        ran: Ran,
        batch_items: int,
        ended_at: float,
        wall: float,
    ) -> None:
        """`rows`: at least one, as `Row` has them, in the order of their numbers. An id is the prefix and a number.
        `ended_at` is on the clock of the arrivals."""
        self._prefix = prefix
        self._rows = rows
        self._ran = ran
        self._batch_items = batch_items
        self._ended_at = ended_at
        self._wall = wall

    @property
    def number(self) -> int:
        """The first one's."""
        return self._row(0).number

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, number: int) -> Kept | None:
        place = bisect_left(self._rows, number, key=lambda row: row[0])  # type: ignore[arg-type, return-value]
        return self.at(place) if place < len(self._rows) and self._row(place).number == number else None

    def newest(self) -> Iterator[Kept]:
        return (self.at(place) for place in range(len(self._rows) - 1, -1, -1))

    def forget(self, count: int) -> None:
        """The oldest."""
        self._rows = self._rows[count:]

    def at(self, place: int) -> Kept:
        row, ran = self._row(place), self._ran
        outcome = Outcome(
            DecisionId(f"{self._prefix}{row.number}"), ran.variant, ran.model, ran.version, ran.worker, ran.instance, 1,
            row.decided_at, row.decide_s, row.queue_s, ran.run_s, self._ended_at - row.arrived_at, slo_met=True,
        )  # fmt: skip
        return Kept(
            row.number, outcome, row.request_id, self._wall, row.handle, row.admission, row.policy, row.requirements,
            ANSWERED, "" if row.choice is None else row.choice.reason,
            predicted(row.choice, row.selected_at - row.arrived_at), was_sent=True,
            batch_items=self._batch_items, trace=row.trace, selected=row.selected, deadline=row.deadline,
            selected_at=row.selected_at,
        )  # fmt: skip

    def _row(self, place: int) -> Row:
        return Row._make(self._rows[place])


def predicted(choice: Choice | None, chosen_after_s: float) -> float | None:
    """In ms from the query's arrival on, as what is observed is; the last choice counts when it was chosen again."""
    return None if choice is None else (chosen_after_s + choice.predicted_s) * 1e3


class Ring:
    """The last so many decisions. They come in the order of their numbers."""

    def __init__(self, memory: int) -> None:
        self._memory = memory
        self._count = 0
        self._entries: deque[Kept | KeptTogether] = deque()

    def append(self, entry: Kept | KeptTogether) -> None:
        entries = self._entries
        entries.append(entry)
        self._count += len(entry)
        while (over := self._count - self._memory) > 0:
            oldest = entries[0]
            if isinstance(oldest, KeptTogether) and len(oldest) > over:
                oldest.forget(over)
                self._count = self._memory
                return
            self._count -= len(entries.popleft())

    def of(self, number: int) -> Kept | None:
        place = bisect_left(self._entries, number + 1, key=_number) - 1
        return self._entries[place].of(number) if place >= 0 else None

    def newest(self) -> Iterator[Kept]:
        return (kept for entry in reversed(self._entries) for kept in entry.newest())

    def requested(self, request_id: str) -> Kept | None:
        """The newest of a request. It looks at all of them, which takes up to some milliseconds."""
        return next((kept for kept in self.newest() if kept.request_id == request_id), None)


def _number(entry: Kept | KeptTogether) -> int:
    return entry.number
