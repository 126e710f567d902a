"""Which batches share a run: of several controllers, each of which formed its own without knowing the others' queries.

Batches of one controller never do: it made them as it wanted them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec.structs import replace

from infaas_worker.decide.serving import Work

PAYS = 0.9
"""One run must take less than this share of what two would."""


def mates_of(first: Work, held: Iterable[Work], latencies: Sequence[float], now: float) -> tuple[Work, ...]:
    """What runs together with a batch that starts now: of those that wait for the same instance and are like it, the
    earliest deadlines, as far as the instance takes so many items, sharing pays, and no query becomes late by it.

    `latencies` are typical runs by their items, from one on.
    """
    if first.likeness is None or not 0 < first.items <= len(latencies):
        return ()
    found: list[Work] = []
    items, deadline, owners = first.items, first.deadline, {first.owner}
    for work in sorted((each for each in held if _is_like(each, first)), key=_urgency):
        total = items + work.items
        if work.owner in owners or not work.items or total > len(latencies):
            continue
        together_s = latencies[total - 1]
        if together_s > PAYS * (latencies[items - 1] + latencies[work.items - 1]):
            continue
        if now + together_s > min(deadline, work.deadline):
            continue
        found.append(work)
        owners.add(work.owner)
        items, deadline = total, min(deadline, work.deadline)
    return tuple(found)


def shared(members: Sequence[Work], latencies: Sequence[float], now: float) -> tuple[Work, ...]:
    """The members of one run, begun: all of them take as long as it does, and the first one has its threads."""
    first, items = members[0], sum(work.items for work in members)
    expected_s = latencies[items - 1]
    stretch = expected_s / latencies[first.items - 1] if latencies[first.items - 1] else 1.0
    slow_s = None if first.slow_s is None else first.slow_s * max(1.0, stretch)
    return tuple(
        replace(
            work, started_at=now, expected_s=expected_s, slow_s=slow_s, threads=work.threads if work is first else 0
        )
        for work in members
    )


def _is_like(work: Work, first: Work) -> bool:
    return work.started_at is None and work.instance == first.instance and work.likeness == first.likeness


def _urgency(work: Work) -> tuple[float, int]:
    return work.deadline, work.key
