"""Parts of a running cluster are lost under load; what callers saw is held against what is promised.

The same faults as `benchmarks/faults.py` prints, with few queries and patient deadlines: these tests are about what
fails, not about how fast anything is.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infaas.demo import family
from infaas.testing import faults
from infaas.testing.cluster import Cluster
from infaas.testing.faults import Fault, Result, endure
from infaas.testing.load import HUNG, query_bytes

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
MODEL = "digits-mlp"
RATE = 20.0
DEADLINE_S = 10.0
IMPATIENT_S = 2.0
LASTS_S = {
    faults.REDIS_KILLED: 8.0,
    faults.REDIS_SLOW: 12.0,
}
"""Long enough for a controller to notice and say it."""


@pytest.fixture(scope="module")
def has_small_disk() -> dict[str, bool]:
    """Told by `cluster`."""
    return {}


@pytest.fixture(scope="module")
def cluster(has_small_disk: dict[str, bool]) -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        cluster = Cluster(Path(folder), controllers=2, workers=2)
        with faults.small_disk(cluster.catalogue) as is_mounted, cluster.running():
            has_small_disk["is_mounted"] = is_mounted
            cluster.register(MODEL)
            yield cluster


def queries(deadline_s: float) -> list[bytes]:
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        images = np.asarray(data[family.INPUT], dtype=np.float32)
    headers = {"x-infaas-slo-latency-ms": f"{deadline_s * 1e3:g}", "x-infaas-slo-accuracy-min": "0"}
    return [query_bytes(MODEL, {family.INPUT: images[n : n + 1]}, headers) for n in range(20)]


def suffer(cluster: Cluster, fault: Fault, deadline_s: float = DEADLINE_S) -> Result:
    result = asyncio.run(
        endure(
            cluster,
            fault,
            queries(deadline_s),
            rate=RATE,
            deadline_s=deadline_s,
            lead_s=2.0,
            lasts_s=LASTS_S.get(fault),
            tail_s=3.0,
        )
    )
    assert len(result.outcome.shots) > RATE
    assert HUNG not in result.outcome.failed
    assert result.outcome.hung == 0, "whatever is lost, nobody waits longer than a second past the deadline"
    return result


@pytest.mark.parametrize(
    "fault",
    [
        faults.WORKER_KILLED,
        faults.CONTROLLER_KILLED,
        faults.GENERATOR_KILLED,
        faults.REDIS_KILLED,
        faults.REDIS_EMPTIED,
        faults.REDIS_FLUSHED,
        faults.REDIS_SLOW,
        faults.REDIS_STALLED,
        faults.REDIS_READ_ONLY,
        faults.REDIS_FULL,
        faults.REDIS_LOCKED_OUT,
        faults.CATALOGUE_LOCKED,
    ],
    ids=lambda fault: fault.name,
)
def test_no_query_fails_and_all_is_whole_again_by_itself(cluster: Cluster, fault: Fault) -> None:
    assert suffer(cluster, fault).broken() == []


def test_a_full_disk_under_the_catalogue_costs_no_query(cluster: Cluster, has_small_disk: dict[str, bool]) -> None:
    if not has_small_disk["is_mounted"]:
        pytest.skip("this user may not mount a small file system")
    assert suffer(cluster, faults.CATALOGUE_FULL).broken() == []


def test_a_worker_that_stands_still_holds_no_query_past_its_deadline(cluster: Cluster) -> None:
    assert suffer(cluster, faults.WORKER_STOPPED, IMPATIENT_S).broken() == []


def test_an_isolated_instance_that_is_killed_costs_no_query(cluster: Cluster) -> None:
    """The last one here: instances have processes of their own from now on."""
    cluster.isolate(MODEL, "process")
    assert not suffer(cluster, faults.GENERATOR_KILLED).outcome.failed, "loads it, too"
    assert any(cluster.places("process").values())
    assert suffer(cluster, faults.INSTANCE_KILLED).broken() == []
