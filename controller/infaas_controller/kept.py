"""What is kept of decisions until somebody asks: next to nothing is done for each of them, and of a batch's usual
answers what they have in common is kept once. Nothing here holds a query: thousands of inputs would stay in memory.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

    def requested(self, request_id: str) -> Kept | None:
        return self if self.request_id == request_id else None


class Kind(NamedTuple):
    """What answers of a batch share when they were chosen for together."""

    handle: str
    requirements: Requirements
    trace: TraceContext | None
    admission: Admission | None
    policy: str
    selected: Selected | None
    choice: Choice | None


TIMES = 6
"""Of each answer: when its query arrived, its deadline, when it was selected for and decided on, how long that took,
and how long it waited; seconds, the first four on the clock of the arrivals."""


class KeptTogether:
    """Usual answers (`ports.Batch`) of one batch. There are thousands of these, and what an answer has to itself is
    packed: memory that is written once and seldom read again would take the processor's caches from what is in use."""

    __slots__ = (
        "_batch_items", "_begin", "_ended_at", "_ids", "_kinds", "_numbers", "_prefix", "_ran", "_starts", "_times",
        "_wall",
    )  # fmt: skip

    def __init__(
        self,
        prefix: str,
        numbers: Sequence[int],
        ids: Sequence[str],
        times: Iterable[float],
        kinds: Mapping[int, Kind],
        ran: Ran,
        batch_items: int,
        ended_at: float,
        wall: float,
    ) -> None:
        """Decision ids are the prefix and a number; numbers ascend, and there is one at least. `ids` are the requests';
        `times`: `TIMES` for each; `kinds`: each from which place on, the first from 0; `ended_at` is on the clock of
        the arrivals."""
        self._prefix = prefix
        self._numbers = numbers
        self._ids = " ".join(ids)  # none has a space in it
        self._times = array("d", times)
        self._starts, self._kinds = tuple(kinds), tuple(kinds.values())
        self._ran = ran
        self._batch_items = batch_items
        self._ended_at = ended_at
        self._wall = wall
        self._begin = 0
        """What is before that is forgotten."""

    @property
    def number(self) -> int:
        """The first one's."""
        return self._numbers[self._begin]

    def __len__(self) -> int:
        return len(self._numbers) - self._begin

    def of(self, number: int) -> Kept | None:
        place = bisect_left(self._numbers, number, self._begin)
        return self.at(place) if place < len(self._numbers) and self._numbers[place] == number else None

    def newest(self) -> Iterator[Kept]:
        return self.each(range(len(self._numbers) - 1, self._begin - 1, -1))

    def requested(self, request_id: str) -> Kept | None:
        """The newest of a request."""
        if request_id not in self._ids:
            return None
        ids = self._ids.split(" ")
        places = range(len(ids) - 1, self._begin - 1, -1)
        return next((self.at(place) for place in places if ids[place] == request_id), None)

    def forget(self, count: int) -> None:
        """The oldest."""
        self._begin += count

    def at(self, place: int) -> Kept:
        """By the place among all that were given."""
        return next(self.each((place,)))

    def each(self, places: Iterable[int]) -> Iterator[Kept]:
        """As `at`."""
        ids = self._ids.split(" ")
        return (self._at(place, ids[place]) for place in places)

    def _at(self, place: int, request_id: str) -> Kept:
        kind, ran = self._kinds[bisect_right(self._starts, place) - 1], self._ran
        arrived_at, deadline, selected_at, decided_at, decide_s, queue_s = self._times[
            place * TIMES : (place + 1) * TIMES
        ]
        number, choice = self._numbers[place], kind.choice
        outcome = Outcome(
            DecisionId(f"{self._prefix}{number}"), ran.variant, ran.model, ran.version, ran.worker, ran.instance, 1,
            decided_at, decide_s, queue_s, ran.run_s, self._ended_at - arrived_at, slo_met=True,
        )  # fmt: skip
        return Kept(
            number, outcome, request_id, self._wall, kind.handle, kind.admission, kind.policy,
            kind.requirements, ANSWERED, "" if choice is None else choice.reason,
            predicted(choice, selected_at - arrived_at), was_sent=True, batch_items=self._batch_items,
            trace=kind.trace, selected=kind.selected, deadline=deadline, selected_at=selected_at,
        )  # fmt: skip


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
        """The newest of a request. It looks at all of them, which takes some milliseconds."""
        found = (entry.requested(request_id) for entry in reversed(self._entries))
        return next((kept for kept in found if kept is not None), None)


def _number(entry: Kept | KeptTogether) -> int:
    return entry.number
