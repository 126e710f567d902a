"""Selection: which variant, on which instance, for one query, now. Or why none.

Admission (`candidates`) has already ruled out what load cannot change. A policy compares the rest by the ledger's
predictions; this function adds what holds under every policy: the fallback that a caller allows, and the record.
"""

from __future__ import annotations

from infaas.domain.ids import InstanceId
from infaas.domain.query import Choice, Code, Objective, Query, Refusal
from infaas.errors import InfaasError
from infaas_controller.decide.account import candidates
from infaas_controller.decide.candidates import Admission
from infaas_controller.decide.options import Option, Situation
from infaas_controller.decide.policies.base import Bind, Policy, Refuse
from infaas_controller.decide.policies.slo import best_option
from infaas_controller.decide.refuse import refuse
from infaas_controller.ledger import Ledger

_FALLBACK_HELPS = frozenset(
    (Code.SLO_UNSATISFIABLE, Code.DEADLINE_UNREACHABLE, Code.LOADING, Code.NO_WORKER, Code.UNAVAILABLE)
)


class Selected:
    """A choice or refusal with the trace that candidates can be made of later."""

    __slots__ = ("admission", "hop_s", "items", "looked", "objective", "option", "outcome")

    def __init__(self, outcome: Choice | Refusal, situation: Situation, option: Option | None) -> None:
        wanted = situation.query.requirements
        self.outcome = outcome
        self.admission = situation.admission
        self.looked = situation.looked
        self.option = option
        self.items = situation.query.items
        is_fallback = isinstance(outcome, Choice) and outcome.fallback is not None
        self.objective = Objective.ACCURACY if is_fallback else wanted.objective
        """What the variants were ordered by."""
        self.hop_s = option.deck.hop.at(situation.now) if option is not None else 0.0


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
    return found.outcome._replace(candidates=candidates(found, query.deadline, now))


def select_traced(
    query: Query,
    admission: Admission,
    ledger: Ledger,
    policy: Policy,
    now: float,
    draw: float,
    excluded: frozenset[InstanceId] = frozenset(),
    *,
    late_at: frozenset[InstanceId] = frozenset(),
    needs_process: bool = False,
) -> Selected:
    """As `select`, with candidates left unmade: what the query path uses."""
    situation = Situation(query, admission, ledger, now, draw, excluded, late_at=late_at, needs_process=needs_process)
    if query.deadline <= now:
        return Selected(_too_late(situation), situation, None)
    if admission.refusal is not None:
        refusal = admission.refusal
    else:
        verdict = policy.on_arrival(situation)
        if isinstance(verdict, Refuse) and not ledger.given_up.isdisjoint(admission.names):
            situation.insists = True
            situation.looked.clear()
            verdict = policy.on_arrival(situation)
        if not isinstance(verdict, Refuse):
            _check(verdict.option, situation, policy.name)
            is_bound = isinstance(verdict, Bind)
            chosen = _choice(verdict.option, now, verdict.reason, is_bound=is_bound)
            return Selected(chosen, situation, verdict.option)
        refusal = verdict.refusal
    if query.requirements.fallback and admission.relaxed and refusal.code in _FALLBACK_HELPS:
        option = best_option(situation, admission.relaxed, Objective.ACCURACY)
        if option is not None:
            chosen = _fallen_back(option, refusal, now)
            return Selected(chosen, situation, option)
    return Selected(refusal, situation, None)


def _check(option: Option, situation: Situation, policy: str) -> None:
    """Floors and caps are checked last, whatever a policy says (SURFACE rule 3). Raises InfaasError."""
    lane, name = option.lane, option.variant.name
    if name not in situation.admission.names:
        raise InfaasError(f"policy {policy!r} chose {name}, which floor, cap or handle rule out", code=Code.INTERNAL)
    if lane is not None and (lane.variant != name or not situation.can_use(lane)):
        raise InfaasError(f"policy {policy!r} chose {lane.id} for {name}, which cannot run it", code=Code.INTERNAL)


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
    return chosen._replace(fallback=refusal.reason, load=refusal.load)
