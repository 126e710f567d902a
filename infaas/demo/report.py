"""What the demo measured about the answers it got, and how that is printed and stored."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from infaas.cli.output import Table, number, percent
from infaas.demo.sets import QuerySet

HARD_LIMIT_MS = 30_000.0


@dataclass(frozen=True, slots=True)
class Sent:
    """One query as its caller saw it. `code` is None for an answer. Times by the caller's own clock."""

    latency_ms: float
    code: str | None = None
    variant: str | None = None
    decision_id: str | None = None
    fallback: str | None = None
    correct: int = 0
    rows: int = 1


@dataclass(frozen=True, slots=True)
class SetResult:
    """One requirement set. Every query that was sent is in the denominators."""

    name: str
    asks: str
    handle: str
    batch: int
    sent: int
    answered: int
    on_time_share: float | None
    """Answered within the objective (or 30 s), of all that were sent; None where a refusal is what is right."""
    refused: dict[str, int]
    variants: dict[str, int]
    accuracy: float | None
    """Of the answers, against the labels."""
    accuracy_floor: float | None
    """What the set stated."""
    below_floor: int
    """Answers by variants whose measured accuracy is below a stated floor, other than labelled fallbacks."""
    fallbacks: int
    cost_usd_per_1k: float | None
    p50_ms: float | None
    p95_ms: float | None
    sample_decision: str | None


@dataclass(frozen=True, slots=True)
class Measured:
    """What a variant's profile says, as far as the report needs it."""

    accuracy: float | None
    cost_usd_per_1k: float | None


def summarise(one: QuerySet, sent: Sequence[Sent], variants: Mapping[str, Measured]) -> SetResult:
    """Pure: the result of a set from its queries."""
    answers = [query for query in sent if query.code is None]
    limit_ms = one.requirements.slo_latency_ms or HARD_LIMIT_MS
    on_time = sum(query.latency_ms <= limit_ms for query in answers)
    rows = sum(query.rows for query in answers)
    floor = one.requirements.slo_accuracy_min
    below = [
        query
        for query in answers
        if floor and not query.fallback and ((_known(query, variants).accuracy or 0.0) < floor)
    ]
    costs = [cost for query in answers if (cost := _known(query, variants).cost_usd_per_1k) is not None]
    latencies = sorted(query.latency_ms for query in answers)
    return SetResult(
        name=one.name,
        asks=one.asks,
        handle=one.handle,
        batch=one.batch,
        sent=len(sent),
        answered=len(answers),
        on_time_share=None if one.is_refused else on_time / max(1, len(sent)),
        refused=dict(Counter(query.code for query in sent if query.code is not None)),
        variants=dict(Counter(query.variant or "unknown" for query in answers).most_common()),
        accuracy=sum(query.correct for query in answers) / rows if rows else None,
        accuracy_floor=floor,
        below_floor=len(below),
        fallbacks=sum(query.fallback is not None for query in answers),
        cost_usd_per_1k=sum(costs) / len(costs) if costs else None,
        p50_ms=quantile(latencies, 0.5),
        p95_ms=quantile(latencies, 0.95),
        sample_decision=next((query.decision_id for query in reversed(sent) if query.decision_id), None),
    )


def quantile(ascending: Sequence[float], share: float) -> float | None:
    """The smallest value that `share` of all do not exceed; None of nothing."""
    if not ascending:
        return None
    rank = -(-int(share * 1_000_000) * len(ascending) // 1_000_000)
    return ascending[min(len(ascending) - 1, max(0, rank - 1))]


def result_table(results: Sequence[SetResult]) -> Table:
    table = Table(
        "SET", "ASKS FOR", "SERVED BY", ">SENT", ">ON TIME", ">ACCURACY", ">USD/1K", ">P50 MS", ">P95 MS",
        title="What served each set (accuracy: of the answers, against the labels)",
    )  # fmt: skip
    for one in results:
        table.add(
            one.name,
            one.asks,
            served_by(one),
            one.sent,
            percent(one.on_time_share) if one.on_time_share is not None else "refused",
            percent(one.accuracy),
            number(one.cost_usd_per_1k),
            number(one.p50_ms),
            number(one.p95_ms),
        )
    return table


def served_by(one: SetResult) -> str:
    """Variant shares, largest first, then refusals."""
    words = [f"{name} {100 * count / one.sent:.0f}%" for name, count in list(one.variants.items())[:3]]
    rest = sum(list(one.variants.values())[3:])
    if rest:
        words.append(f"others {100 * rest / one.sent:.0f}%")
    words += [f"{code} {100 * count / one.sent:.0f}%" for code, count in one.refused.items()]
    if one.fallbacks:
        words.append(f"({one.fallbacks} labelled as fallback)")
    return "\n".join(words)


def _known(query: Sent, variants: Mapping[str, Measured]) -> Measured:
    return variants.get(query.variant or "", Measured(None, None))
