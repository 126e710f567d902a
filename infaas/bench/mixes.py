"""Sets of requirements and how often each is asked for: `latency=50,accuracy=0.95,objective=cost:weight=2`."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from infaas.client_answers import Requirements
from infaas.domain.query import Objective, Priority
from infaas.errors import InvalidError

NO_SET = "as the task's defaults say"
_KEYS = ("latency", "accuracy", "max-cost", "objective", "priority", "tenant", "fallback", "name")


@dataclass(frozen=True, slots=True)
class RequirementSet:
    name: str
    requirements: Requirements
    weight: float = 1.0

    @property
    def deadline_s(self) -> float | None:
        """As stated; a task's default is the server's to know."""
        latency_ms = self.requirements.slo_latency_ms
        return None if latency_ms is None else latency_ms / 1e3


def read_sets(texts: Sequence[str]) -> tuple[RequirementSet, ...]:
    """One set that states nothing when there are none. Raises InvalidError naming what is wrong."""
    sets = tuple(read_set(text) for text in texts) or (RequirementSet(NO_SET, Requirements()),)
    names = [one.name for one in sets]
    for name in names:
        if names.count(name) > 1:
            raise InvalidError(f"two requirement sets are called {name!r}; `name=` tells them apart")
    return sets


def read_set(text: str) -> RequirementSet:
    """`KEY=VALUE,...` and maybe `:weight=W`; a set without `name=` is called by what it asks for."""
    asked, colon, tail = text.partition(":")
    weight = 1.0
    if colon:
        word, _, value = tail.strip().partition("=")
        if word != "weight":
            raise InvalidError(f"requirement set {text!r}: after ':' comes weight=NUMBER, not {tail!r}")
        weight = _number(text, "weight", value)
        if weight <= 0:
            raise InvalidError(f"requirement set {text!r}: a weight is more than 0")
    stated: dict[str, str] = {}
    for part in filter(None, (word.strip() for word in asked.split(","))):
        key, equals, value = (word.strip() for word in part.partition("="))
        if key not in _KEYS or not equals or key in stated:
            raise InvalidError(f"requirement set {text!r}: {part!r} is not one KEY=VALUE of {', '.join(_KEYS)}")
        stated[key] = value
    name = stated.pop("name", "") or ",".join(f"{key}={value}" for key, value in stated.items()) or NO_SET
    return RequirementSet(name, _requirements(text, stated), weight)


class MixDraw:
    """Which set the next query belongs to: drawn independently by weight, the same for the same seed."""

    def __init__(self, sets: Sequence[RequirementSet], seed: int) -> None:
        self._draw = random.Random(f"mix {seed}")
        self._choices = range(len(sets))
        total = math.fsum(one.weight for one in sets)
        self._bounds = [math.fsum(one.weight for one in sets[: n + 1]) / total for n in self._choices]

    def __call__(self) -> int:
        if len(self._bounds) == 1:
            return 0
        return self._draw.choices(self._choices, cum_weights=self._bounds)[0]


def _requirements(text: str, stated: dict[str, str]) -> Requirements:
    def number(key: str, most: float = math.inf) -> float | None:
        if key not in stated:
            return None
        found = _number(text, key, stated[key])
        if not 0 <= found <= most:
            raise InvalidError(f"requirement set {text!r}: {key} is out of its range")
        return found

    def word(key: str, known: Sequence[str]) -> str | None:
        if key in stated and stated[key] not in known:
            raise InvalidError(f"requirement set {text!r}: {key} is one of {', '.join(known)}")
        return stated.get(key)

    fallback = word("fallback", ("allow", "deny"))
    return Requirements(
        slo_latency_ms=number("latency"),
        slo_accuracy_min=number("accuracy", 1.0),
        max_cost=number("max-cost"),
        objective=word("objective", [one.value for one in Objective]),
        priority=word("priority", [one.value for one in Priority]),
        fallback=None if fallback is None else fallback == "allow",
        tenant=stated.get("tenant"),
    )


def _number(text: str, key: str, value: str) -> float:
    try:
        found = float(value)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise InvalidError(f"requirement set {text!r}: {key}={value} is not a number")
    return found
