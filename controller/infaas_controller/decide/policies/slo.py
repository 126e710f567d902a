"""`slo`, the default: of the variants within floor and cap, the one that the objective likes best among those that
meet the deadline. Equal ones are settled by the least predicted completion, then by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

from infaas.domain.query import Objective
from infaas.domain.variant import Variant
from infaas_controller.decide.candidates import accuracy_of, cost_of
from infaas_controller.decide.options import Option, Situation
from infaas_controller.decide.policies.base import Hold, Refuse, Verdict, first_in_time
from infaas_controller.decide.refuse import refuse

_REASONS = {
    Objective.COST: "cheapest that meets the deadline",
    Objective.ACCURACY: "most accurate that meets the deadline",
    Objective.LATENCY: "least predicted completion",
}


class SloPolicy:
    name = "slo"
    decides_together = True

    def __init__(self, parameter: str = "") -> None:
        if parameter:
            raise ValueError(f"policy 'slo' takes no parameter (got {parameter!r})")

    def on_arrival(self, situation: Situation) -> Verdict:
        objective = situation.query.requirements.objective
        option = best_option(situation, situation.admission.variants, objective)
        return Refuse(refuse(situation)) if option is None else Hold(option, _REASONS[objective])


def best_option(situation: Situation, variants: Sequence[Variant], objective: Objective) -> Option | None:
    """`variants` are in the objective's order, so that the first group of equals with one in time settles it."""
    deadline = situation.query.deadline
    if objective is Objective.LATENCY:
        return _soonest(situation, variants)
    value: Callable[[Variant], float] = cost_of if objective is Objective.COST else accuracy_of
    for _, equals in groupby(variants, key=value):
        best = first_in_time((o for v in equals if (o := situation.best(v)) is not None), deadline)
        if best is not None:
            return best
    return None


def _soonest(situation: Situation, variants: Sequence[Variant]) -> Option | None:
    """The least predicted completion of all. A variant that could not beat the best so far even at rest is left out."""
    at_best, items, now = situation.ledger.at_best, situation.query.items, situation.now
    best: Option | None = None
    for variant in variants:
        if best is not None and at_best(variant, items, now) > best.at:
            continue
        option = situation.best(variant)
        if option is None:
            continue
        best = first_in_time((option,) if best is None else (best, option), situation.query.deadline)
    return best
