"""Queries that are turned away unread because the loop has too much to do (`decide.shed`): how long its turns take, who
is told so, and what is counted of them.

The first who is told so is read and leaves a decision; those behind share it and the bytes of its answer for a while.
"""

from __future__ import annotations

from infaas.domain.query import Code, Query
from infaas.errors import InfaasError
from infaas_controller.api.headers import fresh_request_id
from infaas_controller.api.http_resting import RESTS_S, Resting
from infaas_controller.api.http_turned import TurnedAway
from infaas_controller.api.http_turns import Turns
from infaas_controller.api.http_way import Head
from infaas_controller.api.intake import time_s
from infaas_controller.api.service import Inference
from infaas_controller.decide.shed import LEAST_S, Shed
from infaas_controller.ports import QueryFailedError

SHARED_FOR_S = 1.0
"""How long a decision stands for those who are told the same."""
RETRY_AFTER_S = RESTS_S


class Shedding:
    """One per application; belongs to one event loop."""

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._clock = inference.clock
        self.turns = Turns(inference.clock, self._turn_ended)
        self.resting = Resting(inference.clock, inference.count_rested)
        self._told: list[Head] = []
        """Under whom queries were turned away in this turn."""
        self._is_over = False

    def _turn_ended(self) -> None:
        self.resting.turn_ended(self.turns.reading_s)
        if self._told:
            heads, self._told = self._told, []
            for head in heads:
                self._count(head)

    def end(self) -> None:
        """Nobody is turned away unread any more: from now on everybody is told something else."""
        self._is_over = True
        self.resting.end()

    def turns_away(self, head: Head, data: bytes, begin: int, unread_s: float) -> bytes | bool:
        """Whether a query is turned away, if it is like those that the head is known by, its body beginning there;
        bytes are its whole answer. Without one, it must be read, and told with a decision of its own (`refusal`).
        `unread_s`: it may have lain there for so long, and is turned away where that is too much for it, whatever the
        share."""
        shed, turns, known = head.shed, self.turns, head.known
        if self._is_over or known is None or not known.inputs.suits(data, begin):
            return False
        if shed is None:
            wanted = known.requirements
            shed = head.shed = Shed(time_s(wanted), wanted.priority, turns.began_at)
        is_late = unread_s > shed.long_s
        if head.shed_turn != turns.number:
            head.shed_turn = turns.number
            shed.saw(turns.reading_s, turns.began_at)
            if not shed.share and turns.reading_s <= LEAST_S and not self.resting:
                self.no_more(head)
                return False
        if not is_late and not shed.takes():
            return False
        told = head.shed_told
        if told is None or turns.began_at >= told.until or (answer := told.answer(fresh_request_id())) is None:
            return True
        if not head.shed_count:
            self._told.append(head)
        head.shed_count += 1
        return answer

    def refusal(self, query: Query, head: Head) -> QueryFailedError:
        """What the query is told that was read for it. Raises QueryFailedError while draining."""
        shed, within_s, facts = head.shed, query.deadline - query.arrived_at, []
        if shed is not None and shed.share:
            facts.append(
                f"a turn of its loop took {shed.last_long_s * 1e3:.3g} ms, and of queries with {within_s * 1e3:.4g} ms "
                f"{shed.share:.0%} are turned away unread"
            )
        if self.resting:
            facts.append(
                f"{len(self.resting)} connections are left unread for {RESTS_S:g} s or so, and what lay there for too "
                "long is turned away"
            )
        text = (
            f"more queries come than this controller can read: {'; '.join(facts)}. Try again later, or spread them "
            "over more processes (controller.processes) or controllers"
        )
        error = InfaasError(text, code=Code.SATURATED, is_retryable=True, retry_after_s=RETRY_AFTER_S)
        return self._inference.service.refused(query, error)

    def remember(self, head: Head, query: Query, failure: QueryFailedError, answer: bytes, request_id: str) -> None:
        """What those like the query are told from now on."""
        self._count(head)
        if head.shed_told is not None:
            self._inference.alike.over(head.shed_told)
        now = self._clock.now()
        head.shed_told = TurnedAway(query, failure.code, failure.outcome, answer, request_id, now, holds_s=SHARED_FOR_S)

    def no_more(self, head: Head) -> None:
        """Nobody is turned away under this head, until turns are long again."""
        self._count(head)
        told, head.shed, head.shed_told = head.shed_told, None, None
        if told is not None:
            self._inference.alike.over(told)

    def _count(self, head: Head) -> None:
        count, head.shed_count = head.shed_count, 0
        told = head.shed_told
        if count and told is not None:
            self._inference.alike.tell(told, count)
            slo_met = told.outcome.slo_met
            self._inference.count_turned(head.handle, told.priority, told.code, slo_met=slo_met, count=count)
