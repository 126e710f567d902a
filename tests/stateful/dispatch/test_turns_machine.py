"""Random floods of three priorities and several tenants at one instance: nobody is kept waiting beyond the bounds."""

from __future__ import annotations

import heapq
from collections import defaultdict
from itertools import count

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from infaas_controller.decide.turn import AGEING_S, AGEING_SHARE, OWED_EVERY, aged_rank, turn

RANKS = 3


class Waiting:
    """One class per rank and time to answer, each with its earliest deadline first."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.heap: list[tuple[float, int, float]] = []

    @property
    def head_deadline(self) -> float:
        return self.heap[0][0]

    @property
    def waiting_since(self) -> float:
        return self.heap[0][2]

    @property
    def tag(self) -> float:
        return 0.0


class TurnsMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0
        self.numbers = count()
        self.classes: dict[tuple[int, float], Waiting] = {}
        self.passed = 0
        self.overtaken: defaultdict[int, int] = defaultdict(int)
        """Batches that went to a higher rank while one of this rank was owed a turn, since it last had one."""
        self.owed_turns = 0
        self.contested = 0

    def heads(self) -> list[Waiting]:
        return [each for each in self.classes.values() if each.heap]

    @rule(rank=st.integers(0, RANKS - 1), lasts_s=st.sampled_from([0.1, 1.0, 30.0]), how_many=st.integers(1, 30))
    def come(self, rank: int, lasts_s: float, how_many: int) -> None:
        there = self.classes.setdefault((rank, lasts_s), Waiting(rank))
        for _ in range(how_many):
            heapq.heappush(there.heap, (self.now + lasts_s, next(self.numbers), self.now))

    @rule(seconds=st.sampled_from([0.001, 0.03, 0.3, 3.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for each in self.classes.values():
            while each.heap and each.heap[0][0] <= self.now:
                heapq.heappop(each.heap)

    @precondition(lambda self: self.heads())
    @rule(batches=st.integers(1, 3 * OWED_EVERY))
    def serve(self, batches: int) -> None:
        for _ in range(batches):
            heads = self.heads()
            if not heads:
                return
            ranks = {head.rank for head in heads}
            highest = min(ranks)
            owed = {head.rank for head in heads if head.rank > highest and aged_rank(head, self.now) <= highest}
            chosen, self.passed = turn(heads, self.now, self.passed)
            assert chosen.head_deadline == min(head.head_deadline for head in heads if head.rank == chosen.rank)
            self.contested += len(ranks) > 1
            assert chosen.rank == highest or chosen.rank in owed, "nobody goes before a higher priority unless owed"
            self.owed_turns += chosen.rank != highest
            for rank in range(RANKS):
                if rank in owed and rank != chosen.rank:
                    self.overtaken[rank] += 1
                else:
                    self.overtaken[rank] = 0
            heapq.heappop(chosen.heap)

    @invariant()
    def who_is_owed_a_turn_has_it_within_the_bound(self) -> None:
        for rank in range(RANKS):
            assert self.overtaken[rank] < OWED_EVERY * (RANKS - 1)

    @invariant()
    def a_flood_of_a_lower_priority_takes_a_bounded_part(self) -> None:
        assert self.owed_turns <= self.contested // OWED_EVERY + 1

    @invariant()
    def whoever_waits_is_owed_a_turn_by_half_of_his_time(self) -> None:
        for head in self.heads():
            lasts_s = head.head_deadline - head.waiting_since
            if self.now - head.waiting_since >= head.rank * min(AGEING_S, AGEING_SHARE * lasts_s) * (1 + 1e-9):
                assert aged_rank(head, self.now) == 0


TestTurnsMachine = TurnsMachine.TestCase
TestTurnsMachine.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
