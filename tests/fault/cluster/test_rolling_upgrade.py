"""Every part of a cluster under load is replaced by one of the version before, and back: no caller notices."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infaas.demo import family
from infaas.domain.query import Code
from infaas.errors import InfaasError
from infaas.testing.cluster import Cluster
from infaas.testing.load import query_bytes
from infaas.testing.previous import NoHistoryError, environ_of, unpack_previous
from infaas.testing.upgrade import roll

pytestmark = [pytest.mark.long, pytest.mark.timeout(500)]
MODEL = "digits-mlp"
WORKERS = 3
RATE = 20.0
DEADLINE_S = 10.0


@pytest.fixture(scope="module")
def previous() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        try:
            source = unpack_previous(Path(folder))
        except NoHistoryError as error:
            pytest.skip(str(error))
        yield source


@pytest.fixture
def cluster(previous: Path) -> Iterator[Cluster]:
    """Wholly of the version before, as it is before an upgrade."""
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        settings = {"INFAAS_CONTROLLER__MIN_REPLICAS": str(WORKERS)}
        cluster = Cluster(Path(folder), controllers=2, workers=WORKERS, settings=settings)
        cluster.sources = dict.fromkeys(cluster.names, previous)
        with cluster.running():
            cluster.register(MODEL)
            ask(cluster)
            cluster.wait_spread(list(cluster.places()), WORKERS)
            yield cluster


def queries() -> list[bytes]:
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        images = np.asarray(data[family.INPUT], dtype=np.float32)
    headers = {"x-infaas-slo-latency-ms": f"{DEADLINE_S * 1e3:g}", "x-infaas-slo-accuracy-min": "0"}
    return [query_bytes(MODEL, {family.INPUT: images[n : n + 1]}, headers) for n in range(20)]


def ask(cluster: Cluster) -> None:
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        image = np.asarray(data[family.INPUT][:1], dtype=np.float32)
    with cluster.client() as client:
        client.infer(MODEL, {family.INPUT: image})


def knows_fleets(cluster: Cluster, controller: int) -> bool:
    """Which the version before does not: it tells the two apart."""
    with cluster.client(controller) as client:
        try:
            client.fleet()
        except InfaasError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            return False
        return True


def test_the_version_before_is_what_runs_from_its_folder(previous: Path) -> None:
    words = [sys.executable, "-c", "import infaas, infaas_controller as c; print(infaas.__file__, c.__file__)"]
    done = subprocess.run(words, check=True, capture_output=True, cwd=previous, env=environ_of(previous), timeout=60)
    assert all(path.startswith(str(previous)) for path in done.stdout.decode().split())


def test_up_and_down_one_version_no_query_fails(cluster: Cluster, previous: Path) -> None:
    assert not knows_fleets(cluster, 0)
    for passage in roll(cluster, None, "up", queries(), rate=RATE, deadline_s=DEADLINE_S):
        assert passage.broken() == []
    assert all(knows_fleets(cluster, number) for number in range(2))
    for passage in roll(cluster, previous, "down", queries(), rate=RATE, deadline_s=DEADLINE_S):
        assert passage.broken() == []
    assert not any(knows_fleets(cluster, number) for number in range(2))
