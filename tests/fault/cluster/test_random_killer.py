"""Parts of a cluster under load are killed, stopped and cut off at random; when all is healed, nothing is left of it.

`benchmarks/killer.py` does it for ten minutes.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infaas.demo import family
from infaas.domain.fleet import Intent
from infaas.domain.ids import WorkerId
from infaas.rpc.codec import encode
from infaas.store.base import Kind
from infaas.store.redis import RedisStore
from infaas.testing.cluster import Cluster
from infaas.testing.killer import answers, cluster_with_fleet, hunt, plan_wounds
from infaas.testing.leftovers import leftovers, wait_until_nothing_is_left
from infaas.testing.load import query_bytes

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
MODEL = "digits-mlp"
SECONDS = 60.0
EVERY_S = 3.0
RATE = 20.0
DEADLINE_S = 5.0
SEED = 3


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with (
        tempfile.TemporaryDirectory(prefix="infaas-", ignore_cleanup_errors=True) as folder,
        cluster_with_fleet(Path(folder)) as cluster,
    ):
        cluster.register(MODEL)
        assert not answers(cluster, queries()).failed
        yield cluster


def queries() -> list[bytes]:
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        images = np.asarray(data[family.INPUT], dtype=np.float32)
    headers = {"x-infaas-slo-latency-ms": f"{DEADLINE_S * 1e3:g}", "x-infaas-slo-accuracy-min": "0"}
    return [query_bytes(MODEL, {family.INPUT: images[n : n + 1]}, headers) for n in range(200)]


async def write(cluster: Cluster, intent: Intent) -> None:
    store = RedisStore(cluster.redis_url)
    try:
        await store.put(Kind.INTENT, intent.id, encode(intent))
    finally:
        await store.close()


def test_what_is_hurt_shows_as_long_as_it_is(cluster: Cluster) -> None:
    """Else the end of the other test would say nothing."""
    fleet = cluster.folder / "fleet"
    wait_until_nothing_is_left(cluster, fleet, 60.0)
    with cluster.client() as client:
        client.drain_worker("local-1")
        assert any("local-1 is DRAINING" in what for what in leftovers(cluster, fleet))
        client.resume_worker("local-1")
    wait_until_nothing_is_left(cluster, fleet, 60.0)
    cluster.signal("worker-2", signal.SIGSTOP)
    try:
        assert leftovers(cluster, fleet)
    finally:
        cluster.signal("worker-2", signal.SIGCONT)
    wait_until_nothing_is_left(cluster, fleet, 60.0)
    asyncio.run(write(cluster, Intent("f-1", "local", WorkerId("local-f-1"), time.time())))
    assert any("intent f-1" in what for what in leftovers(cluster, fleet))
    wait_until_nothing_is_left(cluster, fleet, 60.0)


def test_nothing_is_left_of_what_a_random_killer_did(cluster: Cluster) -> None:
    wounds = plan_wounds(SEED, SECONDS, cluster.controllers, cluster.workers, every_s=EVERY_S)
    assert len({wound.target for wound in wounds}) > 4, "a seed that hits few parts shows little"
    found = hunt(cluster, wounds, queries(), rate=RATE, deadline_s=DEADLINE_S, seed=SEED)
    assert found.hung == 0
    assert not answers(cluster, queries()).failed
