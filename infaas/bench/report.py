"""From the records of a run to what is said of it: a pure summary, set by set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from infaas.bench.journal import Columns, shares
from infaas.bench.mixes import RequirementSet
from infaas.bench.reply import OK
from infaas.bench.statistics import Percentile, percentiles
from infaas.bench.verdict import Finding, Generator
from infaas.domain.variant import Accuracy

ALL = "all"
Score = Callable[[int | None], Accuracy | None]
"""The accuracy under a requirement set, by its number, or under all together; None where nothing can be scored."""


@dataclass(frozen=True, slots=True)
class SetReport:
    name: str
    requirements: Mapping[str, str]
    weight: float
    sent: int
    answered: int
    codes: Mapping[str, int]
    """How queries ended: `ok`, an error's slug, or what broke on the way."""
    deadline_ms: float | None
    on_time: int | None
    """Answered within the stated deadline by the caller's clock; None where none was stated, or not in every set."""
    latency_ms: tuple[Percentile, ...]
    """Of answered queries, from the scheduled moment."""
    max_ms: float | None
    throughput: float
    """Answered queries per second until the run's last answer (`BenchReport.answering_s`)."""
    variants: Mapping[str, int]
    fallbacks: int
    cold_starts: int
    accuracy: Accuracy | None
    """Over distinct rows, each scored once: `rows` says how many were answered, and the interval is theirs."""
    cost_usd: float | None
    """Of the answers, by the variants' profiles; None where a variant has no price."""
    cost_usd_per_1k: float | None
    """Per 1,000 answered rows."""


@dataclass(frozen=True, slots=True)
class BenchReport:
    handle: str
    began_at: str
    """Wall clock, ISO 8601 UTC."""
    parameters: Mapping[str, object]
    versions: Mapping[str, str]
    seconds: float
    """From the beginning to the end of the last query, however it ended."""
    answering_s: float
    """From the beginning to the last answer that was good, which is what throughput is divided by: callers who wait in
    vain at the end make a run longer, but not the system slower. 0: none was."""
    offered: float | None
    """Queries per second of the schedule; None in a closed loop, and where all were due at once."""
    generator: Generator
    findings: tuple[Finding, ...]
    sets: tuple[SetReport, ...]
    notes: tuple[str, ...] = ()
    total: SetReport | None = field(default=None)
    """All sets together, where there are several."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the summary needs besides the records."""

    codes: Sequence[str]
    variants: Sequence[str]
    prices: Mapping[str, float]
    """USD per 1,000 rows, by variant."""
    rows: int
    """Per query."""
    score: Score


def set_reports(
    columns: Columns, sets: Sequence[RequirementSet], facts: Facts
) -> tuple[tuple[SetReport, ...], SetReport | None]:
    """One per set, and one of all when there are several."""
    each = tuple(_summary(columns, columns.mix == n, one, facts, facts.score(n)) for n, one in enumerate(sets))
    if len(sets) == 1:
        return each, None
    everything = np.ones(len(columns.mix), dtype=np.bool_)
    deadlines = np.array([_deadline_s(one) for one in sets])
    return each, _summary(columns, everything, None, facts, facts.score(None), deadlines)


def answering_s(columns: Columns, codes: Sequence[str]) -> float:
    """Seconds from the beginning of a run to its last good answer; 0 without any."""
    ended_s = columns.ended_s[columns.code == codes.index(OK)]
    return float(ended_s.max()) if len(ended_s) else 0.0


def _summary(
    columns: Columns,
    chosen: npt.NDArray[np.bool_],
    one: RequirementSet | None,
    facts: Facts,
    accuracy: Accuracy | None,
    deadlines_s: npt.NDArray[np.float64] | None = None,
) -> SetReport:
    is_answer = chosen & (columns.code == facts.codes.index(OK))
    took_s = (columns.ended_s - columns.due_s)[is_answer]
    answered = int(is_answer.sum())
    served = shares(facts.variants, columns.variant[is_answer])
    cost_usd = _cost(served, facts)
    stated = deadlines_s if deadlines_s is not None else np.array([_deadline_s(one)])
    limits = stated[columns.mix[is_answer]] if deadlines_s is not None else stated[0]
    has_deadline = bool(np.isfinite(stated).all())
    within_s = answering_s(columns, facts.codes)
    return SetReport(
        name=ALL if one is None else one.name,
        requirements={} if one is None else one.requirements.headers(),
        weight=1.0 if one is None else one.weight,
        sent=int(chosen.sum()),
        answered=answered,
        codes=shares(facts.codes, columns.code[chosen]),
        deadline_ms=None if one is None else one.requirements.slo_latency_ms,
        on_time=int((took_s <= limits).sum()) if has_deadline else None,
        latency_ms=tuple(_in_ms(found) for found in percentiles(took_s)),
        max_ms=float(took_s.max()) * 1e3 if answered else None,
        throughput=answered / within_s if within_s else 0.0,
        variants={name or "unnamed": count for name, count in served.items()},
        fallbacks=int((columns.is_fallback & is_answer).sum()),
        cold_starts=int((columns.is_cold & is_answer).sum()),
        accuracy=accuracy,
        cost_usd=cost_usd,
        cost_usd_per_1k=None if cost_usd is None or not answered else 1e3 * cost_usd / (answered * facts.rows),
    )


def _deadline_s(one: RequirementSet | None) -> float:
    return float("nan") if one is None or one.deadline_s is None else one.deadline_s


def _cost(served: Mapping[str, int], facts: Facts) -> float | None:
    if any(name not in facts.prices for name in served):
        return None
    return sum(count * facts.rows * facts.prices[name] / 1e3 for name, count in served.items())


def _in_ms(found: Percentile) -> Percentile:
    def ms(value: float | None) -> float | None:
        return None if value is None else value * 1e3

    return Percentile(found.share, ms(found.value), ms(found.low), ms(found.high))
