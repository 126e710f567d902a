"""What `explain` shows of a selection: every variant that the handle names, with what became of it and the numbers.

Made from the trace of a selection when somebody asks, not on the query path. A variant that the policy never compared,
because one that the objective likes better was in time, is shown with what it would take at rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from infaas.domain.ids import VariantName
from infaas.domain.query import Candidate, Objective
from infaas.domain.variant import Variant
from infaas_controller.decide.candidates import Admission, Ruling, accuracy_of, best_latency_s, cost_of
from infaas_controller.decide.options import Looked, Option


class Trace(Protocol):
    """What is kept of a selection."""

    @property
    def admission(self) -> Admission: ...

    @property
    def looked(self) -> list[Looked]: ...

    @property
    def option(self) -> Option | None: ...

    @property
    def objective(self) -> Objective: ...

    @property
    def items(self) -> int: ...

    @property
    def hop_s(self) -> float: ...


def candidates(found: Trace, deadline: float, now: float, limit: int | None = None) -> tuple[Candidate, ...]:
    """`deadline` and `now` are the query's and the selection's, on the controller's clock.

    Of more than `limit`, those that say most: the chosen one, then what was compared, then what was admitted.
    """
    traced = {looked.variant.name: looked for looked in found.looked}
    chosen = found.option
    result: list[Candidate] = []
    for ruling in _first(found, traced, limit):
        variant, looked = ruling.variant, traced.get(ruling.variant.name)
        if chosen is not None and variant.name == chosen.variant.name:
            note = f"chosen (below the floor: {ruling.reason})" if ruling.reason else "chosen"
            result.append(_traced(variant, chosen, note, now))
        elif looked is not None:
            reason = ruling.reason or _why_not(looked, found, deadline, now)
            result.append(_traced(variant, looked.option, reason, now))
        elif ruling.reason or chosen is None:
            result.append(_candidate(variant, ruling.reason or "admitted: not compared"))
        else:
            at_rest_s = best_latency_s(variant, found.items) + found.hop_s
            reason = f"admitted: {_why_less(variant, chosen, found.objective, now)}; predicted at rest"
            result.append(_candidate(variant, reason, at_rest_s))
    return tuple(result)


def _first(found: Trace, traced: Mapping[VariantName, Looked], limit: int | None) -> Sequence[Ruling]:
    """In the order of the rulings, whatever is left out."""
    rulings = found.admission.rulings
    if limit is None or len(rulings) <= limit:
        return rulings

    def weight(place: int) -> tuple[int, int]:
        ruling = rulings[place]
        if found.option is not None and ruling.variant.name == found.option.variant.name:
            return 0, place
        if ruling.variant.name in traced:
            return 1, place
        return (3 if ruling.reason else 2), place

    return [rulings[place] for place in sorted(sorted(range(len(rulings)), key=weight)[:limit])]


def _why_not(looked: Looked, found: Trace, deadline: float, now: float) -> str:
    option, chosen = looked.option, found.option
    if option is None and looked.is_given_up:
        return "not loaded: where it could be, another variant has taken over its work"
    if option is None:
        return "not loaded, and no READY worker could load it in time"
    if option.at > deadline:
        left_ms = (deadline - now) * 1e3
        return f"predicted in {(option.at - now) * 1e3:.4g} ms, {left_ms:.4g} ms are left"
    return f"eligible: {_why_less(looked.variant, chosen, found.objective, now, option)}" if chosen else "eligible"


def _why_less(variant: Variant, chosen: Option, objective: Objective, now: float, option: Option | None = None) -> str:
    """In what the chosen one is preferred: by the objective, else by time, else by name."""
    best = chosen.variant
    cost, accuracy = (cost_of(variant), cost_of(best)), (accuracy_of(variant), accuracy_of(best))
    if objective is Objective.COST and cost[0] > cost[1]:
        return f"costs {cost[0]:.3g}, more than the chosen {cost[1]:.3g} USD per 1,000"
    if objective is Objective.ACCURACY and accuracy[0] < accuracy[1]:
        known = f"accuracy {accuracy[0]:.4g}" if accuracy[0] >= 0 else "unknown accuracy"
        return f"{known} is lower than the chosen {accuracy[1]:.4g}"
    if option is None:
        return (
            f"slower than the chosen {(chosen.at - now) * 1e3:.4g} ms"
            if objective is Objective.LATENCY
            else "not compared"
        )
    if option.at > chosen.at:
        return f"predicted in {(option.at - now) * 1e3:.4g} ms, later than the chosen {(chosen.at - now) * 1e3:.4g} ms"
    return "as good as the chosen"


def _traced(variant: Variant, option: Option | None, reason: str, now: float) -> Candidate:
    if option is None:
        return replace(_candidate(variant, reason), is_loaded=False)
    plain = _candidate(variant, reason, option.at - now)
    return replace(plain, worker=option.deck.id, is_loaded=option.lane is not None)


def _candidate(variant: Variant, reason: str, predicted_s: float | None = None) -> Candidate:
    profile = variant.profile
    accuracy = profile.accuracy if profile else None
    return Candidate(
        variant=variant.name,
        reason=reason,
        predicted_s=predicted_s,
        accuracy=accuracy.value if accuracy else None,
        accuracy_low=accuracy.low if accuracy else None,
        accuracy_source=accuracy.source.value if accuracy else None,
        cost_usd_per_1k=profile.cost_usd_per_1k if profile else None,
    )
