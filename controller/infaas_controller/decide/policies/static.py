"""`static:VARIANT` pins every query to one variant, on its soonest free instance. Floors and caps hold all the same."""

from __future__ import annotations

from infaas.domain.query import Code, Refusal
from infaas_controller.decide.options import Situation
from infaas_controller.decide.policies.base import Bind, Refuse, Verdict
from infaas_controller.decide.refuse import refuse


class StaticPolicy:
    def __init__(self, parameter: str = "") -> None:
        if not parameter:
            raise ValueError("policy 'static' needs a variant: static:VARIANT")
        self._variant = parameter

    @property
    def name(self) -> str:
        return f"static:{self._variant}"

    def on_arrival(self, situation: Situation) -> Verdict:
        pinned = next((v for v in situation.admission.variants if v.name == self._variant), None)
        if pinned is None:
            ruled = next((r for r in situation.admission.rulings if r.variant.name == self._variant), None)
            why = ruled.reason if ruled is not None else f"{situation.query.handle!r} does not admit it"
            return Refuse(Refusal(Code.SLO_UNSATISFIABLE, f"policy pins {self._variant}: {why}"))
        option = situation.best(pinned)
        if option is None or option.at > situation.query.deadline:
            return Refuse(refuse(situation, (pinned,)))
        return Bind(option, "pinned")
