"""`infaas`: selection as in INFaaS (Romero et al., USENIX ATC 2021, section 4.2), a baseline and a reference.

Variants are Inactive (no instance), Active, Overloaded or Interfered; the last two are not chosen while they last. Of
the Active variants that meet latency and accuracy by their profile, the least loaded is taken; else of the Inactive
ones the least load + inference time, on the least utilised worker; else the query is refused and the nearest variant
is named. Latency is the profile's: the paper does not look at queues when it decides, so queries are bound on arrival
and may time out. One deviation: our callers' cost caps hold (the paper carries them and never uses them).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from infaas.domain.ids import VariantName
from infaas.domain.query import Code, Refusal
from infaas.domain.variant import Hardware, Variant
from infaas_controller.decide.candidates import best_latency_s, cost_of
from infaas_controller.decide.options import Looked, Option, Situation
from infaas_controller.decide.policies.base import Bind, Refuse, Verdict
from infaas_controller.decide.refuse import refuse
from infaas_controller.lanes import Lane
from infaas_controller.observed import VariantLoad

PERIOD_S = 1.0
"""States are stepped each second."""
OUTSTANDING_SHARE = 0.8


class VariantMode(StrEnum):
    INACTIVE = "Inactive"
    ACTIVE = "Active"
    OVERLOADED = "Overloaded"
    INTERFERED = "Interfered"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Mean latency as a multiple of the profile: marked above `mark` while the rate per replica is above `rate_share`
    of what one can do, cleared below `clear`. From the published code, per kind of hardware."""

    mark: float
    rate_share: float
    clear: float


THRESHOLDS = {Hardware.CPU: Thresholds(2.5, 0.5, 1.5), Hardware.GPU: Thresholds(1.5, 0.3, 1.25)}


def step_mode(variant: Variant, load: VariantLoad, before: VariantMode) -> VariantMode:
    """The state of a variant after a second in which `load` was observed.

    Overloaded: more outstanding than 0.8 of what the replicas do in a second, or slow while the rate is near the peak.
    Interfered: slow while the rate is below its peak. Without replicas it is Inactive, whatever it was.
    """
    if load.replicas == 0 or variant.profile is None:
        return VariantMode.INACTIVE
    profile_s = variant.profile.latency_s(1, "mean_s")
    limits = THRESHOLDS[variant.hardware]
    peak_per_s = 1.0 / profile_s
    ratio = load.mean_latency_s / profile_s if load.mean_latency_s is not None else 0.0
    rate_per_replica = load.rate_per_s / load.replicas
    if load.outstanding > OUTSTANDING_SHARE * load.replicas * peak_per_s:
        return VariantMode.OVERLOADED
    if ratio > limits.mark and rate_per_replica > limits.rate_share * peak_per_s:
        return VariantMode.OVERLOADED if rate_per_replica >= peak_per_s else VariantMode.INTERFERED
    if before in (VariantMode.OVERLOADED, VariantMode.INTERFERED) and ratio >= limits.clear:
        return before
    return VariantMode.ACTIVE


class InfaasPolicy:
    name = "infaas"

    def __init__(self, parameter: str = "") -> None:
        if parameter:
            raise ValueError(f"policy 'infaas' takes no parameter (got {parameter!r})")
        self._marks: dict[VariantName, tuple[VariantMode, float]] = {}

    def mode(self, variant: Variant, situation: Situation) -> VariantMode:
        """The variant's state now, stepped at most once a second."""
        replicas = sum(1 for lane in situation.ledger.lanes_of(variant.name) if lane.is_usable and lane.is_ready)
        if replicas == 0:
            self._marks.pop(variant.name, None)
            return VariantMode.INACTIVE
        if variant.name not in self._marks:
            # Nobody asks for the state of a variant that has vanished: whoever is new sees it out.
            self._marks = {name: mark for name, mark in self._marks.items() if situation.ledger.lanes_of(name)}
        mode, stepped_at = self._marks.get(variant.name, (VariantMode.ACTIVE, float("-inf")))
        if situation.now - stepped_at >= PERIOD_S:
            mode = step_mode(variant, situation.ledger.observed(variant.name, situation.now), mode)
            self._marks[variant.name] = (mode, situation.now)
        return mode

    def on_arrival(self, situation: Situation) -> Verdict:
        query = situation.query
        budget_s = query.deadline - query.arrived_at
        fitting = [v for v in situation.admission.variants if best_latency_s(v, query.items) <= budget_s]
        modes = {variant.name: self.mode(variant, situation) for variant in fitting}
        active = [v for v in fitting if modes[v.name] is VariantMode.ACTIVE]
        if active:
            variant = min(active, key=lambda v: (self._load(v, situation), cost_of(v), v.name))
            option = self._least_loaded(variant, situation)
            if option is not None:
                return Bind(option, f"least loaded of {len(active)} active variants that meet latency and accuracy")
        inactive = [v for v in fitting if modes[v.name] is VariantMode.INACTIVE]
        option = self._least_start(inactive, situation)
        if option is not None:
            return Bind(option, "inactive with the least load and inference time, on the least utilised worker")
        held = sorted(f"{name} is {mode}" for name, mode in modes.items() if mode is not VariantMode.INACTIVE)
        if held:
            return Refuse(Refusal(Code.DEADLINE_UNREACHABLE, f"nearest variants: {'; '.join(held[:3])}", PERIOD_S))
        return Refuse(refuse(situation))

    def _load(self, variant: Variant, situation: Situation) -> float:
        """Promised seconds per replica."""
        lanes = [lane for lane in situation.ledger.lanes_of(variant.name) if lane.is_usable and lane.is_ready]
        return sum(_promised_s(lane, situation.now) for lane in lanes) / len(lanes)

    def _least_loaded(self, variant: Variant, situation: Situation) -> Option | None:
        lanes = [lane for lane in situation.ledger.lanes_of(variant.name) if situation.can_use(lane) and lane.is_ready]
        if not lanes:
            return None
        lane = min(lanes, key=lambda each: (_promised_s(each, situation.now), each.id))
        at = situation.ledger.predict(lane, situation.urgency, situation.query.items, situation.now)
        option = Option(variant, lane, lane.worker, at)
        situation.looked.append(Looked(variant, option))
        return option

    def _least_start(self, inactive: list[Variant], situation: Situation) -> Option | None:
        """One that is loading already counts with what is left of its load."""
        best: Option | None = None
        for variant in inactive:
            option = situation.best_live(variant) or situation.best_cold(variant)
            situation.looked.append(Looked(variant, option))
            if option is None or option.at > situation.query.deadline:
                continue
            if best is None or (option.at, variant.name) < (best.at, best.variant.name):
                best = option
        return best


def _promised_s(lane: Lane, now: float) -> float:
    return max(0.0, lane.free_at(now) - now) + lane.waiting_s()
