"""Selection: which variant, on which instance, for one query, now. Or why none.

Admission (`candidates`) has already ruled out what load cannot change. A policy compares the rest by the ledger's
predictions; this function adds what holds under every policy: the fallback that a caller allows, and the record.
"""

from __future__ import annotations

from dataclasses import replace

from infaas.domain.ids import InstanceId
from infaas.domain.query import Candidate, Choice, Code, Objective, Query, Refusal
from infaas.domain.variant import Variant
from infaas_controller.decide.candidates import Admission, candidate_of
from infaas_controller.decide.options import Looked, Option, Situation
from infaas_controller.decide.policies.base import Bind, Policy, Refuse
from infaas_controller.decide.policies.slo import best_option
from infaas_controller.decide.refuse import refuse
from infaas_controller.ledger import Ledger

_FALLBACK_HELPS = frozenset({Code.SLO_UNSATISFIABLE, Code.DEADLINE_UNREACHABLE, Code.LOADING, Code.NO_WORKER})


class Selected:
    """A choice or refusal with the trace that candidates can be made of later."""

    __slots__ = ("admission", "looked", "option", "outcome")

    def __init__(
        self, outcome: Choice | Refusal, admission: Admission, looked: list[Looked], option: Option | None
    ) -> None:
        self.outcome = outcome
        self.admission = admission
        self.looked = looked
        self.option = option


def select(
    query: Query,
    admission: Admission,
    ledger: Ledger,
    policy: Policy,
    now: float,
    draw: float,
    excluded: frozenset[InstanceId] = frozenset(),
) -> Choice | Refusal:
    """The outcome with its candidates, for one query."""
    found = select_traced(query, admission, ledger, policy, now, draw, excluded)
    return replace(found.outcome, candidates=candidates(found, query.deadline, now))


def select_traced(
    query: Query,
    admission: Admission,
    ledger: Ledger,
    policy: Policy,
    now: float,
    draw: float,
    excluded: frozenset[InstanceId] = frozenset(),
) -> Selected:
    """As `select`, with candidates left unmade: what the query path uses."""
    situation = Situation(query, admission, ledger, now, draw, excluded)
    if query.deadline <= now:
        return Selected(_too_late(situation), admission, situation.looked, None)
    if admission.refusal is not None:
        refusal = admission.refusal
    else:
        verdict = policy.on_arrival(situation)
        if not isinstance(verdict, Refuse):
            is_bound = isinstance(verdict, Bind)
            chosen = _choice(verdict.option, now, verdict.reason, is_bound=is_bound)
            return Selected(chosen, admission, situation.looked, verdict.option)
        refusal = verdict.refusal
    if query.requirements.fallback and admission.relaxed and refusal.code in _FALLBACK_HELPS:
        option = best_option(situation, admission.relaxed, Objective.ACCURACY)
        if option is not None:
            chosen = _fallen_back(option, refusal, now)
            return Selected(chosen, admission, situation.looked, option)
    return Selected(refusal, admission, situation.looked, None)


def _too_late(situation: Situation) -> Refusal:
    """What could never be met is said as that, however long it took to read the query: a retry would not help."""
    query, admission, now = situation.query, situation.admission, situation.now
    never = admission.refusal if admission.refusal is not None else refuse(situation)
    if admission.refusal is not None or never.code is Code.SLO_UNSATISFIABLE:
        return never
    return Refusal(Code.DEADLINE_PASSED, f"the deadline passed {(now - query.deadline) * 1e3:.4g} ms ago")


def _choice(option: Option, now: float, reason: str, *, is_bound: bool) -> Choice:
    lane = option.lane
    return Choice(
        option.variant.name,
        option.deck.id,
        lane.id if lane is not None else None,
        option.at - now,
        reason,
        is_bound=is_bound,
    )


def _fallen_back(option: Option, refusal: Refusal, now: float) -> Choice:
    chosen = _choice(option, now, "fallback: most accurate that meets deadline and cap", is_bound=False)
    return replace(chosen, fallback=refusal.reason, load=refusal.load)


def candidates(found: Selected, deadline: float, now: float) -> tuple[Candidate, ...]:
    """Every variant that the handle names, with what became of it, from the trace of a selection."""
    traced = {looked.variant.name: looked for looked in found.looked}
    chosen = found.option.variant.name if found.option is not None else None
    result: list[Candidate] = []
    for ruling in found.admission.rulings:
        variant, looked = ruling.variant, traced.get(ruling.variant.name)
        if looked is None:
            reason = ruling.reason or ("not compared: another was preferred" if chosen else "not compared")
            result.append(candidate_of(variant, reason))
        elif variant.name == chosen:
            note = f"chosen (below the floor: {ruling.reason})" if ruling.reason else "chosen"
            result.append(_traced(variant, found.option, note, now))
        else:
            result.append(_traced(variant, looked.option, ruling.reason or _why_not(looked, deadline, now), now))
    return tuple(result)


def _why_not(looked: Looked, deadline: float, now: float) -> str:
    option = looked.option
    if option is None:
        return "not loaded, and no READY worker could load it in time"
    if option.at > deadline:
        left_ms = (deadline - now) * 1e3
        return f"predicted in {(option.at - now) * 1e3:.4g} ms, {left_ms:.4g} ms are left"
    return "eligible"


def _traced(variant: Variant, option: Option | None, reason: str, now: float) -> Candidate:
    plain = candidate_of(variant, reason, None if option is None else option.at - now)
    if option is None:
        return plain
    return replace(plain, worker=option.deck.id, is_loaded=option.lane is not None)
