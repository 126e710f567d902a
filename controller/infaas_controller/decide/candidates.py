"""Which variants a query admits: handle, version, batch, floor and cap, but nothing that changes with load.

This is the first half of selection. It depends only on the catalogue part of the view and on the query's
requirements, so that its results are kept until the catalogue changes and a busy system pays for them once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from infaas.domain.cluster import UNFILLED, UNREAD, UNREAD_RETRY_S, ClusterView
from infaas.domain.ids import ModelName, TaskName, VariantName
from infaas.domain.query import (
    DEFAULT_FLOOR_MARGIN,
    AccuracyConfidence,
    Code,
    Level,
    Objective,
    Query,
    Refusal,
    Requirements,
)
from infaas.domain.task import ModelState
from infaas.domain.variant import AccuracySource, Profile, Variant, VariantState

_CACHE_LIMIT = 20_000
"""Admissions kept per catalogue; requirement sets beyond it (random floors of a fuzzer) start the cache afresh."""
_BUILD_RETRY_S = 2.0


@dataclass(frozen=True, slots=True)
class Ruling:
    """What was said of one variant before load was looked at; `reason` empty: it is admitted."""

    variant: Variant
    reason: str


class Admission:
    """The variants that one set of requirements admits, in the order in which the objective likes them.

    `key` is equal for two admissions of one catalogue exactly when queries under them are interchangeable:
    same variants in the same order of preference, same relaxed set.
    """

    __slots__ = (
        "floor", "is_default_floor", "key", "level", "names", "refusal", "relaxed", "rulings", "task", "variants",
    )  # fmt: skip

    def __init__(
        self,
        level: Level | None,
        task: TaskName | None,
        floor: float | None,
        is_default_floor: bool,
        variants: tuple[Variant, ...],
        rulings: tuple[Ruling, ...],
        refusal: Refusal | None,
        relaxed: tuple[Variant, ...] = (),
        key: int = 0,
    ) -> None:
        self.level = level
        self.task = task
        self.floor = floor
        self.is_default_floor = is_default_floor
        self.variants = variants
        """Admitted, most preferred first."""
        self.names = frozenset(variant.name for variant in variants)
        self.rulings = rulings
        self.refusal = refusal
        """Why nothing is admitted; a floor that rules out all still leaves `relaxed`."""
        self.relaxed = relaxed
        """What is admitted besides if the caller allows fallback: floor set aside, most accurate first."""
        self.key = key


class Admissions:
    """Admission with memory. It forgets everything when the catalogue part of the view is another object."""

    def __init__(self, confidence: AccuracyConfidence = AccuracyConfidence.POINT) -> None:
        self._confidence = confidence
        self._tasks: object = None
        self._models: object = None
        self._variants: object = None
        self._known: dict[tuple[object, ...], Admission] = {}
        self._keys: dict[tuple[object, ...], int] = {}
        self._next_key = 0

    def of(self, query: Query, view: ClusterView) -> Admission:
        if view.variants is not self._variants or view.models is not self._models or view.tasks is not self._tasks:
            self._tasks, self._models, self._variants = view.tasks, view.models, view.variants
            self._known.clear()
            self._keys.clear()
        wanted = query.requirements
        key = (
            query.handle, query.version, query.items, wanted.accuracy_min, wanted.max_cost, wanted.objective,
            wanted.fallback, wanted.accuracy_confidence,
        )  # fmt: skip
        found = self._known.get(key)
        if found is None:
            if len(self._known) >= _CACHE_LIMIT:
                self._known.clear()
            found = admit(query.handle, query.version, query.items, wanted, view, self._confidence)
            found.key = self._key_of(found, wanted)
            self._known[key] = found
        return found

    def _key_of(self, admission: Admission, wanted: Requirements) -> int:
        """Keys are never reused, so that classes of an older catalogue stay apart from those of the newer."""
        same = (
            wanted.objective,
            tuple(variant.name for variant in admission.variants),
            tuple(variant.name for variant in admission.relaxed),
        )
        if same not in self._keys:
            self._next_key += 1
            self._keys[same] = self._next_key
        return self._keys[same]


def admit(
    handle: str,
    version: int | None,
    items: int,
    wanted: Requirements,
    view: ClusterView,
    confidence: AccuracyConfidence = AccuracyConfidence.POINT,
) -> Admission:
    """Everything about a query's candidates that does not depend on load. `confidence` is the system's own; a query
    that asks for `lower95` gets it in any case."""
    level = view.level_of(handle)
    if level is None:
        return _refused(None, None, _unknown(handle, view))
    if wanted.accuracy_confidence is AccuracyConfidence.LOWER95:
        confidence = AccuracyConfidence.LOWER95
    task, named = _named(handle, version, level, view)
    if not named:
        return _refused(level, task, _nothing_named(handle, version, level, view))
    servable = [variant for variant in named if _standing_problem(variant) == ""]
    is_default = wanted.accuracy_min is None
    floor = default_floor(servable, confidence) if wanted.accuracy_min is None else wanted.accuracy_min
    rulings: list[Ruling] = []
    within_cap: list[Variant] = []
    admitted: list[Variant] = []
    for variant in named:
        reason = _standing_problem(variant) or _batch_problem(variant, items)
        if not reason:
            reason = _cap_problem(variant, wanted.max_cost)
            if not reason:
                within_cap.append(variant)
                reason = floor_problem(variant, floor, confidence)
        rulings.append(Ruling(variant, reason))
        if not reason:
            admitted.append(variant)
    admitted.sort(key=_preference(wanted.objective))
    relaxed: tuple[Variant, ...] = ()
    if wanted.fallback:
        relaxed = tuple(sorted(within_cap, key=_preference(Objective.ACCURACY)))
    refusal = None
    if not admitted:
        refusal = _why_none(handle, items, floor, is_default, wanted.max_cost, servable, within_cap, named, confidence)
    return Admission(level, task, floor, is_default, tuple(admitted), tuple(rulings), refusal, relaxed)


def default_floor(variants: Iterable[Variant], confidence: AccuracyConfidence = AccuracyConfidence.POINT) -> float:
    """Best *measured* accuracy minus the margin; 0 when none is measured. It is taken from the same end of the interval
    that floors are compared with, so that the best measured variant always passes it."""
    measured = [
        _compared(variant.profile, confidence)
        for variant in variants
        if variant.profile is not None
        and variant.profile.accuracy is not None
        and variant.profile.accuracy.source is AccuracySource.MEASURED
    ]
    return max(0.0, max(measured) - DEFAULT_FLOOR_MARGIN) if measured else 0.0


def floor_problem(variant: Variant, floor: float, confidence: AccuracyConfidence) -> str:
    """Why a variant is below a floor; empty when it is not. A floor of 0 is no floor."""
    if floor <= 0:
        return ""
    accuracy = variant.profile.accuracy if variant.profile else None
    if accuracy is None:
        return f"no accuracy is known, the floor is {floor:.4f}"
    value = accuracy.low if confidence is AccuracyConfidence.LOWER95 else accuracy.value
    if value >= floor:
        return ""
    label = "lower end of the accuracy interval" if confidence is AccuracyConfidence.LOWER95 else "accuracy"
    return f"{label} {value:.4f} ({accuracy.source}) is below the floor {floor:.4f}"


def accuracy_of(variant: Variant) -> float:
    """The point estimate; below every real one when none is known."""
    profile = variant.profile
    return profile.accuracy.value if profile is not None and profile.accuracy is not None else -1.0


def cost_of(variant: Variant) -> float:
    return variant.profile.cost_usd_per_1k if variant.profile is not None else float("inf")


def best_latency_s(variant: Variant, items: int) -> float:
    """p95 of the batch that these items alone would be."""
    return variant.run_s(items)


def _named(
    handle: str, version: int | None, level: Level, view: ClusterView
) -> tuple[TaskName | None, tuple[Variant, ...]]:
    """The variants that a handle and version name, whatever their state, by name."""
    if level is Level.VARIANT:
        variant = view.variants[VariantName(handle)]
        return variant.task, (variant,) if version in (None, variant.version) else ()
    if level is Level.MODEL:
        models = [view.models[ModelName(handle)]]
        task = models[0].task
    else:
        task = TaskName(handle)
        models = [model for model in view.models.values() if model.task == task]
    serving = {model.name: model.current if version is None else version for model in models}
    found = [v for v in view.variants.values() if v.model in serving and serving[v.model] == v.version]
    return task, tuple(sorted(found, key=lambda v: v.name))


def _standing_problem(variant: Variant) -> str:
    if variant.state is not VariantState.READY:
        return f"{variant.state.value.lower()}" + (f": {variant.reason}" if variant.reason else "")
    return "" if variant.profile is not None else "no profile"


def _batch_problem(variant: Variant, items: int) -> str:
    is_taken = items == variant.fixed_batch if variant.fixed_batch is not None else items <= variant.max_batch_size
    return "" if is_taken else f"{items} items, it takes {_batch_limit(variant)}"


def _batch_limit(variant: Variant) -> str:
    return f"at most {variant.max_batch_size}" if variant.fixed_batch is None else f"exactly {variant.fixed_batch}"


def _cap_problem(variant: Variant, cap: float | None) -> str:
    if cap is None or cost_of(variant) <= cap:
        return ""
    return f"cost {cost_of(variant):.6g} USD per 1,000 is above the cap {cap:.6g}"


def _compared(profile: Profile, confidence: AccuracyConfidence) -> float:
    if profile.accuracy is None:
        return -1.0
    return profile.accuracy.low if confidence is AccuracyConfidence.LOWER95 else profile.accuracy.value


def _preference(objective: Objective) -> Callable[[Variant], tuple[float, str]]:
    """Sort key of an objective: what it likes comes first; names settle what is equal."""
    if objective is Objective.COST:
        return lambda variant: (cost_of(variant), variant.name)
    if objective is Objective.ACCURACY:
        return lambda variant: (-accuracy_of(variant), variant.name)
    return lambda variant: (best_latency_s(variant, 1), variant.name)


def _refused(level: Level | None, task: TaskName | None, refusal: Refusal) -> Admission:
    return Admission(level, task, None, False, (), (), refusal)


def _unknown(handle: str, view: ClusterView) -> Refusal:
    if not view.is_listed:
        return Refusal(Code.UNAVAILABLE, UNREAD, UNREAD_RETRY_S)
    if not view.is_filled:
        return Refusal(Code.UNAVAILABLE, UNFILLED, UNREAD_RETRY_S)
    tasks = sorted(view.tasks)
    known = f"tasks: {', '.join(tasks[:8])}" + (", ..." if len(tasks) > 8 else "") if tasks else "none is registered"
    return Refusal(Code.NOT_FOUND, f"no task, model or variant is named {handle!r} ({known})")


def _nothing_named(handle: str, version: int | None, level: Level, view: ClusterView) -> Refusal:
    if level is Level.VARIANT:
        found = view.variants[VariantName(handle)].version
        return Refusal(Code.NOT_FOUND, f"variant {handle!r} is of version {found}, not {version}")
    if version is not None:
        return Refusal(Code.NOT_FOUND, f"{level.value} {handle!r} has no version {version} that serves")
    models = [m for m in view.models.values() if handle in (m.name, m.task)]
    if any(model.state is ModelState.LOADING for model in models):
        return Refusal(
            Code.LOADING, f"{level.value} {handle!r} is being built; no variant is ready yet", _BUILD_RETRY_S
        )
    reasons = "; ".join(f"{m.name}: {m.reason}" for m in models if m.reason)
    return Refusal(
        Code.UNAVAILABLE,
        f"{level.value} {handle!r} has no variant to serve with" + (f" ({reasons})" if reasons else ""),
        _BUILD_RETRY_S,
    )


def _why_none(
    handle: str,
    items: int,
    floor: float,
    is_default: bool,
    cap: float | None,
    servable: list[Variant],
    within_cap: list[Variant],
    named: tuple[Variant, ...],
    confidence: AccuracyConfidence,
) -> Refusal:
    """Name the bound that rules out the last variant, and the variant that came nearest to it."""
    if not servable:
        reasons = "; ".join(sorted({f"{v.name}: {_standing_problem(v)}" for v in named})[:5])
        return Refusal(Code.UNAVAILABLE, f"no variant of {handle!r} can be selected ({reasons})", _BUILD_RETRY_S)
    taking = [variant for variant in servable if not _batch_problem(variant, items)]
    if not taking:
        sizes = sorted({v.fixed_batch or v.max_batch_size for v in servable})
        shape = "exactly" if all(v.fixed_batch for v in servable) else "at most"
        return Refusal(
            Code.INVALID, f"{items} items in one query; the variants of {handle!r} take {shape} {sizes[-1]}: split it"
        )
    split = [
        variant
        for variant in servable
        if _batch_problem(variant, items)
        and not _cap_problem(variant, cap)
        and not floor_problem(variant, floor, confidence)
    ]
    if split:
        widest = max(split, key=lambda v: (v.fixed_batch or v.max_batch_size, v.name))
        return Refusal(
            Code.SLO_UNSATISFIABLE,
            f"batch: {items} items in one query; what meets the accuracy floor {floor:.4f} takes fewer: "
            f"{widest.name} takes {_batch_limit(widest)}: split it",
        )
    if within_cap:
        nearest = max(within_cap, key=lambda v: (_score(v, confidence), v.name))
        kind = "default floor" if is_default else "accuracy floor"
        what = f"{_score(nearest, confidence):.4f}" if accuracy_of(nearest) >= 0 else "unknown"
        clause = " within the cost cap" if cap is not None else ""
        return Refusal(
            Code.SLO_UNSATISFIABLE,
            f"accuracy: no variant of {handle!r}{clause} reaches the {kind} {floor:.4f}; "
            f"the nearest is {nearest.name} with {what}",
        )
    above = [variant for variant in taking if not floor_problem(variant, floor, confidence)] or taking
    nearest = min(above, key=lambda v: (cost_of(v), v.name))
    return Refusal(
        Code.SLO_UNSATISFIABLE,
        f"cost: no variant of {handle!r} costs at most {cap:.6g} USD per 1,000; "
        f"the nearest is {nearest.name} with {cost_of(nearest):.6g}",
    )


def _score(variant: Variant, confidence: AccuracyConfidence) -> float:
    return _compared(variant.profile, confidence) if variant.profile else -1.0
