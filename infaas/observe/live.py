"""Gauges: what lives at the moment of a scrape, counted then, in one process or in several that are one controller.

They are never incremented: a collector derives them from the sets of things that live, so that no lost event can leave
one wrong (SURFACE rule 11).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class WorkerLive:
    """What is known of one worker now. None is "unknown", never zero."""

    is_up: bool
    report_age_s: float | None = None
    cpu_ratio: float | None = None
    memory_ratio: float | None = None
    stall_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Live:
    """The sets that gauges are counted from, read at the moment of a scrape."""

    in_flight: int = 0
    tasks: int | None = None
    """Of the event loop."""
    queue_size: Mapping[str, int] = field(default_factory=dict)
    """Items waiting, by task."""
    queue_bytes: int = 0
    """Memory of their inputs."""
    queue_tenants: Mapping[str, int] = field(default_factory=dict)
    """Tenants with something waiting, by task. Each process has queues of its own: who waits in several of these counts
    in each."""
    replicas: Mapping[str, int] = field(default_factory=dict)
    """Instances, by state."""
    workers: Mapping[str, WorkerLive] = field(default_factory=dict)
    is_store_up: bool | None = None
    view_age_s: float | None = None
    is_leader: bool | None = None
    is_catalog_up: bool | None = None
    journal_waiting: int | None = None
    processes: int | None = None
    """Of one controller, that serve."""


def together(lives: Sequence[Live]) -> Live:
    """What several processes of one controller are in all; the first is the one that is asked.

    What each has a part of is added up. Of what each sees of the same cluster, the worst is true: a part counts as up
    while all of them have it, and as old as whoever heard of it last.
    """
    first = lives[0]
    queue_size: Counter[str] = Counter()
    queue_tenants: Counter[str] = Counter()
    for live in lives:
        queue_size.update(live.queue_size)
        queue_tenants.update(live.queue_tenants)
    return replace(
        first,
        in_flight=sum(live.in_flight for live in lives),
        tasks=sum(live.tasks or 0 for live in lives),
        queue_size=queue_size,
        queue_bytes=sum(live.queue_bytes for live in lives),
        queue_tenants=queue_tenants,
        workers={
            name: _worker_together([live.workers[name] for live in lives if name in live.workers])
            for name in dict.fromkeys(name for live in lives for name in live.workers)
        },
        is_store_up=_all([live.is_store_up for live in lives]),
        view_age_s=_worst([live.view_age_s for live in lives]),
        is_leader=any(live.is_leader for live in lives),
        is_catalog_up=_all([live.is_catalog_up for live in lives]),
        journal_waiting=sum(live.journal_waiting or 0 for live in lives),
        processes=sum(live.processes or 0 for live in lives),
    )


def _worker_together(seen: Sequence[WorkerLive]) -> WorkerLive:
    return WorkerLive(
        is_up=all(each.is_up for each in seen),
        report_age_s=_worst([each.report_age_s for each in seen]),
        cpu_ratio=_worst([each.cpu_ratio for each in seen]),
        memory_ratio=_worst([each.memory_ratio for each in seen]),
        stall_ratio=_worst([each.stall_ratio for each in seen]),
    )


def _worst(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)


def _all(values: Sequence[bool | None]) -> bool | None:
    known = [value for value in values if value is not None]
    return all(known) if known else None


class LiveCollector(Collector):
    """Turns a `Live` into gauges. `read` is called once per scrape, in the scraping thread or task."""

    def __init__(self, read: Callable[[], Live]) -> None:
        self._read = read

    def describe(self) -> Sequence[Metric]:
        return list(_families(Live()))

    def collect(self) -> Sequence[Metric]:
        return list(_families(self._read()))


def _families(live: Live) -> Iterator[Metric]:
    yield _family("infaas_in_flight", "Queries accepted and not yet answered", [], {(): live.in_flight})
    yield _family("infaas_tasks", "Tasks of the event loop, unfinished", [], {(): live.tasks})
    yield _family(
        "infaas_queue_size", "Items that wait for a slot", ["task"], {(k,): v for k, v in live.queue_size.items()}
    )
    yield _family("infaas_queue_bytes", "Memory that the inputs of waiting queries take", [], {(): live.queue_bytes})
    tenants: dict[tuple[str, ...], float | None] = {(k,): v for k, v in live.queue_tenants.items()}
    yield _family("infaas_queue_tenants", "Tenants that share a queue, at its busiest priority", ["task"], tenants)
    yield _family("infaas_replicas", "Instances", ["state"], {(k,): v for k, v in live.replicas.items()})
    workers = live.workers.items()
    for name, text, values in (
        ("infaas_worker_up", "1 while this controller has the worker's stream", [(k, w.is_up) for k, w in workers]),
        ("infaas_worker_report_age_seconds", "Since its last report", [(k, w.report_age_s) for k, w in workers]),
        ("infaas_worker_cpu_ratio", "Share of its cores that is busy", [(k, w.cpu_ratio) for k, w in workers]),
        ("infaas_worker_memory_ratio", "Share of its budget that is taken", [(k, w.memory_ratio) for k, w in workers]),
        ("infaas_stall_ratio", "Share of time that the host took", [(k, w.stall_ratio) for k, w in workers]),
    ):
        yield _family(name, text, ["worker"], {(k,): v for k, v in values})
    yield _family("infaas_store_up", "1 while the live metadata store answers", [], {(): live.is_store_up})
    yield _family("infaas_view_age_seconds", "Since the view last changed or was confirmed", [], {(): live.view_age_s})
    yield _family("infaas_leader", "1 on the controller that holds the lease", [], {(): live.is_leader})
    yield _family("infaas_catalog_up", "1 while the catalogue can be read and written", [], {(): live.is_catalog_up})
    waiting: dict[tuple[str, ...], float | None] = {(): live.journal_waiting}
    yield _family("infaas_journal_waiting", "Decisions that are not in the catalogue yet", [], waiting)
    serving: dict[tuple[str, ...], float | None] = {(): live.processes}
    yield _family("infaas_controller_processes", "Processes of this controller that serve", [], serving)


def _family(
    name: str, text: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float | None]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        if value is not None:  # an unknown value is no sample
            family.add_metric(key, float(value))
    return family
