"""A cluster whose catalogue is a PostgreSQL: it registers, builds and serves; without it, it goes on serving."""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infaas.demo import family
from infaas.domain.query import Code
from infaas.errors import InfaasError
from infaas.testing.cluster import Cluster, wait_for
from infaas.testing.load import HUNG, Load, Outcome, arrivals, query_bytes
from infaas.testing.postgresql import PostgresServer

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
MODEL = "digits-mlp"
LATER = "digits-centroid"
DEADLINE_S = 10.0


@pytest.fixture
def cluster(own_postgres_server: PostgresServer) -> Iterator[Cluster]:
    server = own_postgres_server
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        secret = Path(folder) / "password"
        secret.write_text(server.password + "\n")
        url = server.url(server.new_database(), with_password=False)
        settings = {"INFAAS_CATALOG__PASSWORD_FILE": str(secret)}
        with Cluster(Path(folder), controllers=2, workers=1, database_url=url, settings=settings).running() as cluster:
            yield cluster


class Background:
    """A load on a thread of its own, so that the test may block."""

    def __init__(self, cluster: Cluster, seconds: float) -> None:
        with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
            image = np.asarray(data[family.INPUT][:1], dtype=np.float32)
        headers = {"x-infaas-slo-latency-ms": f"{DEADLINE_S * 1e3:g}", "x-infaas-slo-accuracy-min": "0"}
        urls = cluster.urls()
        load = Load(
            lambda: urls, [query_bytes(MODEL, {family.INPUT: image}, headers)], deadline_s=DEADLINE_S, is_spread=True
        )
        self.outcome: Outcome | None = None

        def shoot() -> None:
            self.outcome = asyncio.run(load.run(list(arrivals(20.0, seconds, 1))))

        self._thread = threading.Thread(target=shoot, name="load")
        self._thread.start()

    def end(self) -> Outcome:
        self._thread.join()
        assert self.outcome is not None
        return self.outcome


def refusal(cluster: Cluster) -> InfaasError:
    with cluster.client() as client, pytest.raises(InfaasError) as error:
        client.models()
    return error.value


def test_it_registers_builds_serves_and_bears_the_loss_of_its_server(
    cluster: Cluster, own_postgres_server: PostgresServer
) -> None:
    cluster.register(MODEL)
    for number in range(2):
        with cluster.client(number) as client:
            assert [model.name for model in client.models()] == [MODEL]

    load = Background(cluster, 25.0)
    own_postgres_server.kill()
    error = refusal(cluster)
    assert error.code is Code.UNAVAILABLE
    assert error.is_retryable
    assert "the catalogue cannot be read" in error.text
    for number in range(2):
        wait_for(lambda n=number: (s := cluster.system(n)) and s.catalogue.state == "lost", "the loss to be said")
    own_postgres_server.start()
    cluster.wait_whole()
    with own_postgres_server.frozen():
        assert refusal(cluster).code is Code.UNAVAILABLE
    cluster.wait_whole()
    outcome = load.end()
    assert HUNG not in outcome.failed
    assert not outcome.failed

    cluster.register(LATER)
    with cluster.client(1) as client:
        assert client.model(LATER).current == 1
    for name in (*cluster.names, "redis"):
        log = cluster.log(name)
        assert own_postgres_server.password not in log
        assert "SELECT" not in log
