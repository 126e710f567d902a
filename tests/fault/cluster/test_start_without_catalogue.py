"""Controllers that start while their catalogue is away: they serve what the store says, and take it up later."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import pytest

from infaas.control import SystemDocument
from infaas.demo import family
from infaas.domain.query import Code
from infaas.errors import InfaasError
from infaas.testing.cluster import Cluster, wait_for
from infaas.testing.load import Load, Outcome, query_bytes
from infaas.testing.postgresql import PostgresServer

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
MODEL = "digits-mlp"
LATER = "digits-centroid"
DEADLINE_S = 10.0


@contextmanager
def sqlite_away(cluster: Cluster) -> Iterator[None]:
    """Its file cannot be opened, by root either: a folder has its name."""
    kept = cluster.folder / "kept"
    cluster.catalogue.rename(kept)
    (cluster.catalogue / "catalog.db").mkdir(parents=True)
    try:
        yield
    finally:
        (cluster.catalogue / "catalog.db").rmdir()
        cluster.catalogue.rmdir()
        kept.rename(cluster.catalogue)


@contextmanager
def server_away(server: PostgresServer) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start()


def ask(cluster: Cluster) -> Outcome:
    with np.load(family.path(family.EVAL_FILE), allow_pickle=False) as data:
        image = np.asarray(data[family.INPUT][:1], dtype=np.float32)
    headers = {"x-infaas-slo-latency-ms": f"{DEADLINE_S * 1e3:g}", "x-infaas-slo-accuracy-min": "0"}
    query = query_bytes(MODEL, {family.INPUT: image}, headers)
    return asyncio.run(Load(cluster.urls, [query], deadline_s=DEADLINE_S).run([0.1 * number for number in range(20)]))


def serving(cluster: Cluster) -> SystemDocument | None:
    """Once it is ready and has found its worker."""
    found = cluster.system()
    return found if found is not None and found.is_ready and found.workers_connected == 1 else None


def gauge(cluster: Cluster, name: str) -> float:
    url = cluster.metrics_url("controller-1")
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name + " "))


def bear_a_start_without(cluster: Cluster, away: AbstractContextManager[None]) -> None:
    cluster.register(MODEL)
    wait_for(lambda: not ask(cluster).failed, "the store to say what the catalogue does")
    cluster.kill("controller-1")
    with away:
        cluster.start("controller-1")
        system = wait_for(lambda: serving(cluster), "a controller without its catalogue to serve")
        assert system.catalogue.state == "lost"
        assert "the catalogue cannot be opened" in system.catalogue.reason
        assert gauge(cluster, "infaas_catalog_up") == 0
        assert not ask(cluster).failed
        with cluster.client() as client:
            later = next(one for one in family.FAMILY if one.name == LATER)
            for refused in (
                client.models,
                lambda: client.register(family.path(later.file), task="digits", name=LATER, accuracy=0.5),
            ):
                with pytest.raises(InfaasError, match="the catalogue cannot be opened") as error:
                    refused()
                assert error.value.code is Code.UNAVAILABLE
    cluster.wait_whole()
    assert gauge(cluster, "infaas_catalog_up") == 1
    with cluster.client() as client:
        assert [model.name for model in client.models()] == [MODEL]
    cluster.register(LATER)
    assert not ask(cluster).failed


def test_a_file_that_cannot_be_opened_at_the_start_is_taken_up_later() -> None:
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        cluster = Cluster(Path(folder), controllers=1, workers=1)
        with cluster.running():
            bear_a_start_without(cluster, sqlite_away(cluster))


@contextmanager
def sqlite_empty(cluster: Cluster) -> Iterator[None]:
    """What is left in the place of a disk that was not mounted."""
    kept = cluster.folder / "kept"
    cluster.catalogue.rename(kept)
    cluster.catalogue.mkdir()
    try:
        yield
    finally:
        shutil.rmtree(cluster.catalogue)
        kept.rename(cluster.catalogue)


def refused(cluster: Cluster) -> SystemDocument | None:
    found = cluster.system()
    return found if found is not None and "holds no model" in found.catalogue.reason else None


def test_a_file_that_is_not_there_at_the_start_empties_no_store_and_is_taken_up_when_it_is_back() -> None:
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        cluster = Cluster(Path(folder), controllers=1, workers=1)
        with cluster.running():
            cluster.register(MODEL)
            wait_for(lambda: not ask(cluster).failed, "the store to say what the catalogue does")
            cluster.kill("controller-1")
            with sqlite_empty(cluster):
                cluster.start("controller-1")
                system = wait_for(lambda: refused(cluster), "the controller to say that this is another catalogue")
                assert system.catalogue.state == "lost"
                assert "mount or restore that database" in system.catalogue.reason
                assert gauge(cluster, "infaas_catalog_up") == 0
                wait_for(lambda: serving(cluster), "the controller to serve what the store says")
                assert not ask(cluster).failed
                cluster.kill("controller-1")
            cluster.start("controller-1")
            cluster.wait_whole()
            with cluster.client() as client:
                assert [model.name for model in client.models()] == [MODEL]
            assert not ask(cluster).failed


def test_a_server_that_is_stopped_at_the_start_is_taken_up_later(own_postgres_server: PostgresServer) -> None:
    server = own_postgres_server
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        cluster = Cluster(Path(folder), controllers=1, workers=1, database_url=server.url(server.new_database()))
        with cluster.running():
            bear_a_start_without(cluster, server_away(server))
            assert server.password not in cluster.log("controller-1")
