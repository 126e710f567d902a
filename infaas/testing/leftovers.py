"""Whether a cluster that was hurt and healed is as if nothing had been: what is known of it in each place, and what of
it is half done or counted wrongly."""

from __future__ import annotations

import asyncio
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from infaas.domain.cluster import WorkerRecord
from infaas.domain.fleet import Intent, IntentStage
from infaas.errors import InfaasError
from infaas.rpc.codec import decode
from infaas.store.base import Kind
from infaas.store.redis import RedisStore
from infaas.testing.cluster import Cluster, wait_for
from infaas.testing.worker_driver import ControllerEnd
from infaas.up.crew import Crew, MemberState

_READY = "READY"
Known = Mapping[str, tuple[str, frozenset[tuple[str, str, str]]]]
"""Of each worker its state and its instances, by id, variant and state."""
Series = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass(frozen=True, slots=True)
class Stored:
    workers: Known
    intents: tuple[Intent, ...]
    leases: Mapping[str, str]


def leftovers(cluster: Cluster, fleet: Path) -> list[str]:
    """Everything that is not as it should be at rest, in words; empty: nothing is left. To be asked again for a while:
    what is on its way is no fault yet."""
    try:
        return list(_leftovers(cluster, fleet))
    except (InfaasError, OSError, TimeoutError) as error:
        return [f"not everybody answers: {type(error).__name__}: {error}"]


def wait_until_nothing_is_left(cluster: Cluster, fleet: Path, patience_s: float) -> None:
    """Raises TimeoutError naming all that is."""
    left: list[str] = []

    def is_clean() -> bool:
        left[:] = leftovers(cluster, fleet)
        return not left

    try:
        wait_for(is_clean, "nothing to be left", patience_s)
    except TimeoutError as error:
        raise TimeoutError(f"{error}; there is: " + "; ".join(left)) from None


def _leftovers(cluster: Cluster, fleet: Path) -> Iterator[str]:
    members = Crew(fleet).members()
    yield from (f"the fleet's {one.id} is {one.state.value}" for one in members if one.state != MemberState.RUNNING)
    expected = {f"local-{name.partition('-')[2]}" for name in cluster.workers}
    stored = asyncio.run(_stored(cluster))
    yield from _intents(stored, {one.id for one in members})
    expected |= {intent.worker for intent in stored.intents}
    if stored.workers.keys() != expected:
        yield f"the store has workers {sorted(stored.workers)}, there are {sorted(expected)}"
    own = asyncio.run(_own_words(cluster))
    for worker, said in own.items():
        if stored.workers.get(worker) != said:
            yield f"the store says of {worker} {stored.workers.get(worker)}, and it of itself {said}"
        yield from _half_done(worker, said)
    controllers = set()
    for number, name in enumerate(cluster.controllers):
        with cluster.client(number) as client:
            controllers.add(client.system().controller)
            views = {
                one.id: (one.state, frozenset((i.id, i.variant, i.state) for i in one.instances))
                for one in client.workers()
                if one.is_connected
            }
        if views != own:
            yield f"{name} says {views}, and the workers of themselves {own}"
    yield from (
        f"the lease {lease!r} is held by {holder}"
        for lease, holder in stored.leases.items()
        if lease != "controller" or holder not in controllers
    )
    for name in cluster.controllers:
        yield from (f"{name}: {what}" for what in _gauges(_scraped(cluster.metrics_url(name)), own))


async def _stored(cluster: Cluster) -> Stored:
    store = RedisStore(cluster.redis_url)
    try:
        records = (await store.list((Kind.WORKER, Kind.INTENT))).records
        leases = await store.holders()
    finally:
        await store.close()
    workers = [decode(record.value, WorkerRecord) for record in records if record.kind is Kind.WORKER]
    intents = [decode(record.value, Intent) for record in records if record.kind is Kind.INTENT]
    return Stored({one.id: _known(one) for one in workers}, tuple(intents), leases)


async def _own_words(cluster: Cluster) -> Known:
    """What each worker that the store knows says to somebody who asks it alone."""
    store = RedisStore(cluster.redis_url)
    try:
        records = (await store.list((Kind.WORKER,))).records
    finally:
        await store.close()
    found = {}
    for record in records:
        async with asyncio.timeout(5.0), ControllerEnd(decode(record.value, WorkerRecord).address) as end:
            await end.first_report()
            found[str(end.worker.id)] = _known(end.worker)
    return found


def _known(worker: WorkerRecord) -> tuple[str, frozenset[tuple[str, str, str]]]:
    instances = worker.instances.values()
    return worker.state.value, frozenset((one.id, one.variant, one.state.value) for one in instances)


def _intents(stored: Stored, members: set[str]) -> Iterator[str]:
    for intent in stored.intents:
        if intent.stage is not IntentStage.SERVING:
            yield f"the intent {intent.id} is {intent.stage.value}"
        if intent.id not in members:
            yield f"the intent {intent.id} has no machine"
    yield from (f"the machine {id} has no intent" for id in members - {intent.id for intent in stored.intents})


def _half_done(worker: str, said: tuple[str, frozenset[tuple[str, str, str]]]) -> Iterator[str]:
    state, instances = said
    if state != _READY:
        yield f"{worker} is {state}"
    yield from (f"{id} of {worker} is {state}" for id, _, state in sorted(instances) if state != _READY)


def _scraped(url: str) -> Series:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    families = text_string_to_metric_families(text)
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for family in families for one in family.samples}


def _gauges(found: Series, workers: Known) -> Iterator[str]:
    """What a controller that nobody asks anything says of itself, against what is live."""
    for name in ("infaas_in_flight", "infaas_queue_size", "infaas_queue_bytes", "infaas_journal_waiting"):
        yield from (f"{name} is {value:g}" for (series, _), value in found.items() if series == name and value)
    for name in ("infaas_store_up", "infaas_catalog_up", "infaas_controller_processes"):
        if found.get((name, ())) != 1:
            yield f"{name} is {found.get((name, ()))}"
    live = Counter(state for _, instances in workers.values() for _, _, state in instances)
    for (series, labels), value in found.items():
        if series == "infaas_replicas" and value != live[dict(labels)["state"]]:
            yield f"infaas_replicas{dict(labels)} is {value:g}, not {live[dict(labels)['state']]}"
    up = {dict(labels)["worker"]: value for (series, labels), value in found.items() if series == "infaas_worker_up"}
    if up != dict.fromkeys(workers, 1.0):
        yield f"infaas_worker_up is {up}, and there are {sorted(workers)}"
    yield from (f"{series} is {value}" for (series, _), value in found.items() if value != value)
