"""What a caller asks for: headers or metadata, their twins in OIP parameters, a gRPC deadline, and the task's defaults.

One pure function reads them all for both protocols. A header wins over its twin, both win over a gRPC deadline, and
only what nobody stated comes from the task. A value that cannot be understood is refused by name, never guessed.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from infaas.domain.ids import TenantName, name_problem
from infaas.domain.query import AccuracyConfidence, Objective, Priority, Requirements
from infaas.domain.task import TaskDefaults
from infaas.errors import InvalidError, UnsupportedError

Scalar = bool | int | float | str
"""What an OIP parameter may hold."""

PREFIX = "x-infaas-"
LATENCY = "x-infaas-slo-latency-ms"
ACCURACY = "x-infaas-slo-accuracy-min"
COST = "x-infaas-max-cost"
OBJECTIVE = "x-infaas-objective"
PRIORITY = "x-infaas-priority"
FALLBACK = "x-infaas-fallback"
TENANT = "x-infaas-tenant"
EXPLAIN = "x-infaas-explain"
REQUEST_HEADERS = (LATENCY, ACCURACY, COST, OBJECTIVE, PRIORITY, FALLBACK, TENANT, EXPLAIN)

TIMEOUT = "timeout"
"""Triton's parameter: microseconds; 0 is none."""
MAX_LATENCY_MS = 24 * 3600 * 1000.0

FAR_S = MAX_LATENCY_MS / 1000
"""A deadline that bounds nothing."""

_TWINS = {header: header.removeprefix(PREFIX).replace("-", "_") for header in REQUEST_HEADERS}
_OURS = frozenset(_TWINS.values())
_PARAMETERS = sorted(_OURS)
_MAX_NAMED = 8
"""Unknown names that a refusal lists: finding the nearest known one costs time, and a request may hold thousands."""
_MAX_SHOWN = 60
_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")
_FALLBACK_WORDS = {"allow": True, "deny": False}
_BOOL_WORDS = {"true": True, "false": False}

T = TypeVar("T")


class _Reader:
    """Looks a value up in header and twin, and collects every problem before any is raised."""

    def __init__(self, headers: Mapping[str, str], parameters: Mapping[str, Scalar]) -> None:
        self._headers = headers
        self._parameters = parameters
        self.problems: list[str] = []

    def read(self, header: str, parse: Callable[[Scalar, bool], T | None]) -> T | None:
        """`parse(value, is_header)` raises ValueError saying what would be right."""
        text = self._headers.get(header)
        if text is not None:
            return self.parsed(f"header {header!r}", text, lambda value: parse(value, True))
        twin = _TWINS[header]
        value = self._parameters.get(twin)
        if value is not None:
            return self.parsed(f"parameter {twin!r}", value, lambda value: parse(value, False))
        return None

    def parsed(self, where: str, value: Scalar, parse: Callable[[Scalar], T | None]) -> T | None:
        try:
            return parse(value)
        except ValueError as error:
            self.problems.append(f"{where} must be {error}, not {_shown(value)}")
            return None


def read_requirements(
    headers: Mapping[str, str],
    parameters: Mapping[str, Scalar],
    defaults: TaskDefaults,
    *,
    time_remaining_s: float | None = None,
    accuracy_confidence: AccuracyConfidence = AccuracyConfidence.POINT,
) -> Requirements:
    """The requirements of one query. `headers` holds lower-case names; those without our prefix are not looked at.

    `time_remaining_s` is a gRPC call's deadline: the objective when none is stated, and a bound on a stated one,
    because nobody waits past it. Raises InvalidError with every problem, or UnsupportedError for stateful sequences.
    """
    if not parameters and not any(name.startswith(PREFIX) for name in headers):
        return _of_the_task(defaults, time_remaining_s, accuracy_confidence)
    _refuse_sequences(parameters)
    reader = _Reader(headers, parameters)
    reader.problems += unknown_headers(headers) + _unknown_parameters(parameters)
    latency_ms = reader.read(LATENCY, _latency_ms)
    if latency_ms is None and LATENCY not in headers and TIMEOUT in parameters:
        latency_ms = reader.parsed(f"parameter {TIMEOUT!r}", parameters[TIMEOUT], _timeout_ms)
    accuracy = reader.read(ACCURACY, _accuracy)
    cost = reader.read(COST, _cost)
    objective = reader.read(OBJECTIVE, _objective)
    priority = reader.read(PRIORITY, _priority)
    fallback = reader.read(FALLBACK, _fallback)
    tenant = reader.read(TENANT, _tenant)
    explain = reader.read(EXPLAIN, _explain)
    if reader.problems:
        raise InvalidError("; ".join(reader.problems), problems=reader.problems)
    return Requirements(
        latency_s=_latency_s(latency_ms, time_remaining_s, defaults),
        accuracy_min=accuracy if accuracy is not None else defaults.slo_accuracy_min,
        max_cost=cost if cost is not None else defaults.max_cost,
        objective=objective or defaults.objective or Objective.COST,
        priority=priority or defaults.priority or Priority.STANDARD,
        fallback=fallback if fallback is not None else bool(defaults.fallback),
        explain=bool(explain),
        accuracy_confidence=accuracy_confidence,
        policy=defaults.policy,
        tenant=tenant,
    )


def _of_the_task(
    defaults: TaskDefaults, time_remaining_s: float | None, accuracy_confidence: AccuracyConfidence
) -> Requirements:
    """Of a caller who states nothing."""
    return Requirements(
        latency_s=_latency_s(None, time_remaining_s, defaults),
        accuracy_min=defaults.slo_accuracy_min,
        max_cost=defaults.max_cost,
        objective=defaults.objective or Objective.COST,
        priority=defaults.priority or Priority.STANDARD,
        fallback=bool(defaults.fallback),
        accuracy_confidence=accuracy_confidence,
        policy=defaults.policy,
    )


def bounded(wanted: Requirements, time_remaining_s: float | None) -> Requirements:
    """Of a call with a deadline, from what was read with one that is as far off as a latency may be (`FAR_S`). The same
    object where the deadline changes nothing."""
    if time_remaining_s is None or (wanted.latency_s is not None and wanted.latency_s <= time_remaining_s):
        return wanted
    return replace(wanted, latency_s=min(max(0.0, time_remaining_s), FAR_S))


def unknown_headers(headers: Mapping[str, str]) -> list[str]:
    """A requirement that is not understood must not be ignored: the caller would believe that it was met."""
    unknown = [name for name in headers if name.startswith(PREFIX) and name not in _TWINS]
    return [_unknown_text("header", name, REQUEST_HEADERS) for name in unknown[:_MAX_NAMED]]


def _unknown_text(what: str, name: str, known: Sequence[str]) -> str:
    shown = name if len(name) <= _MAX_SHOWN else name[: _MAX_SHOWN - 3] + "..."
    nearest = difflib.get_close_matches(shown, known, n=1, cutoff=0.0)[0]
    return f"unknown {what} {shown!r}; the nearest known one is {nearest!r}"


def _unknown_parameters(parameters: Mapping[str, Scalar]) -> list[str]:
    """Parameters are open to everyone, so only names that can be meant for nobody else are refused."""
    unknown = [name for name in parameters if name.startswith("slo_") and name not in _OURS]
    return [_unknown_text("parameter", name, _PARAMETERS) for name in unknown[:_MAX_NAMED]]


def _refuse_sequences(parameters: Mapping[str, Scalar]) -> None:
    for name in _SEQUENCE:
        if parameters.get(name):
            raise UnsupportedError(f"parameter {name!r}: stateful sequences are not served here; send single queries")


def _latency_s(latency_ms: float | None, time_remaining_s: float | None, defaults: TaskDefaults) -> float | None:
    if time_remaining_s is not None:  # a deadline of years is how some clients say none
        time_remaining_s = min(max(0.0, time_remaining_s), FAR_S)
    if latency_ms is not None:
        stated_s = latency_ms / 1000
        return stated_s if time_remaining_s is None else min(stated_s, time_remaining_s)
    if time_remaining_s is not None:
        return time_remaining_s
    return None if defaults.slo_latency_ms is None else defaults.slo_latency_ms / 1000


def _number(value: Scalar, right: str) -> float:
    if isinstance(value, str):
        # float() takes more than people mean by a number: "1_000", "infinity" and digits of other scripts.
        if not value.isascii() or "_" in value:
            raise ValueError(right)
        try:
            number = float(value)
        except ValueError:
            raise ValueError(right) from None
    else:
        try:
            number = math.nan if isinstance(value, bool) else float(value)
        except OverflowError:
            raise ValueError(right) from None
    if not math.isfinite(number):
        raise ValueError(right)
    return number


def _latency_ms(value: Scalar, is_header: bool) -> float:
    right = f"a number of milliseconds above 0 and at most {MAX_LATENCY_MS:.0f}"
    number = _number(value, right)
    if not 0 < number <= MAX_LATENCY_MS:
        raise ValueError(right)
    return number


def _timeout_ms(value: Scalar) -> float | None:
    right = f"a whole number of microseconds from 0 (none) to {MAX_LATENCY_MS * 1000:.0f}"
    number = _number(value, right)
    if number != int(number) or not 0 <= number <= MAX_LATENCY_MS * 1000:
        raise ValueError(right)
    return number / 1000 or None


def _accuracy(value: Scalar, is_header: bool) -> float:
    right = "a number from 0 (no floor) to 1"
    number = _number(value, right)
    if not 0 <= number <= 1:
        raise ValueError(right)
    return number + 0.0  # -0.0 is 0


def _cost(value: Scalar, is_header: bool) -> float:
    right = "a number of USD per 1,000 queries, 0 or more"
    number = _number(value, right)
    if number < 0:
        raise ValueError(right)
    return number + 0.0


def _objective(value: Scalar, is_header: bool) -> Objective:
    try:
        return Objective(_word(value))
    except ValueError:
        raise ValueError("'cost', 'accuracy' or 'latency'") from None


def _priority(value: Scalar, is_header: bool) -> Priority | None:
    """Words everywhere; Triton's integers only in the parameter: 1 is highest, 0 the default, beyond 2 goes last."""
    if not is_header and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return (None, Priority.CRITICAL, Priority.STANDARD)[value] if value < 3 else Priority.SHEDDABLE
    try:
        return Priority(_word(value))
    except ValueError:
        numbers = "" if is_header else ", or a whole number (1 is highest, 0 the default)"
        raise ValueError(f"'critical', 'standard' or 'sheddable'{numbers}") from None


def _fallback(value: Scalar, is_header: bool) -> bool:
    if isinstance(value, bool):
        return value
    found = _FALLBACK_WORDS.get(_word(value))
    if found is None:
        raise ValueError("'allow' or 'deny'")
    return found


def _tenant(value: Scalar, is_header: bool) -> TenantName:
    """Case matters, as it does in every name."""
    text = value.strip() if isinstance(value, str) else ""
    if name_problem(text) is not None:
        raise ValueError("a letter or digit, then up to 127 letters, digits, '.', '_' or '-'")
    return TenantName(text)


def _explain(value: Scalar, is_header: bool) -> bool:
    if isinstance(value, bool):
        return value
    found = _BOOL_WORDS.get(_word(value))
    if found is None:
        raise ValueError("'true' or 'false'")
    return found


def _word(value: Scalar) -> str:
    return value.strip().lower() if isinstance(value, str) else ""


def _shown(value: Scalar) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."
