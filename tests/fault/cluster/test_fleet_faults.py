"""Leaders and stores are lost while a fleet is kept: no worker too many, none too few, and none that nobody knows."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infaas.client import Client
from infaas.errors import InfaasError, UnavailableError
from infaas.testing.cluster import Cluster, wait_for
from infaas.testing.kept_fleet import running_with_fleet
from infaas.up.crew import Crew, MemberState

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
WORKERS = 2
PAUSED_S = 20.0
AWAY_S = 3.0
"""Several looks."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="infaas-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        settings = {
            "INFAAS_FLEET__PROVIDER": "local",
            "INFAAS_FLEET__PERIOD_S": "0.5",
            "INFAAS_FLEET__UPSCALE_DELAY_S": "0.5",
            "INFAAS_FLEET__FOLDER": str(folder / "fleet"),
            "INFAAS_POOLS": f"{{local: {{workers: 0, min_workers: {WORKERS}, max_workers: 3, cores: 1, "
            "memory_bytes: 500000000}}",
        }
        cluster = Cluster(folder, controllers=2, workers=0, settings=settings, fleet_workers=WORKERS)
        with running_with_fleet(cluster, folder / "fleet"):
            yield cluster


@pytest.fixture
def crew(cluster: Cluster) -> Crew:
    """All is as it should be before each."""
    crew = Crew(cluster.folder / "fleet")
    cluster.wait_whole()
    wait_for(lambda: len(running(crew)) == WORKERS, "the fleet to be whole")
    return crew


def running(crew: Crew) -> set[str]:
    return {one.id for one in crew.members() if one.state is MemberState.RUNNING}


def leader(cluster: Cluster) -> str | None:
    """The name of the one that says so; None: neither does."""
    systems = {name: cluster.system(number) for number, name in enumerate(cluster.controllers)}
    return next((name for name, one in systems.items() if one is not None and one.is_leader), None)


def looked(cluster: Cluster, controller: int) -> str | None:
    """Who has looked at the fleet, as a controller knows."""
    with contextlib.suppress(InfaasError), cluster.client(controller) as client:
        return client.fleet().controller
    return None


def kill_one(crew: Crew) -> str:
    one = next(one for one in crew.members() if one.state is MemberState.RUNNING)
    assert one.pid is not None
    os.kill(one.pid, signal.SIGKILL)
    return one.id


def is_known(client: Client, crew: Crew) -> bool:
    """What runs is what the controllers count as the fleet's."""
    try:
        (pool,) = client.fleet().pools
    except UnavailableError:  # nobody has looked yet
        return False
    ids = {one.id.removeprefix("local-") for one in client.workers() if one.is_connected and one.state == "READY"}
    return ids == running(crew) and pool.own == pool.ready == len(ids) == WORKERS


def test_a_leader_that_stood_still_finds_its_place_taken_and_changes_nothing(cluster: Cluster, crew: Crew) -> None:
    first = leader(cluster)
    assert first is not None
    number = cluster.controllers.index(first)
    before = looked(cluster, number)
    cluster.signal(first, signal.SIGSTOP)
    stopped_at = time.monotonic()
    try:
        gone = kill_one(crew)
        other = 1 - number
        wait_for(lambda: looked(cluster, other) not in (None, before), "the other one to lead")
        wait_for(lambda: len(running(crew) - {gone}) == WORKERS, "it to replace what died meanwhile")
        wait_for(lambda: time.monotonic() - stopped_at > PAUSED_S, "the first to have stood still for long")
    finally:
        cluster.signal(first, signal.SIGCONT)
    cluster.wait_whole()
    with cluster.client(number) as client:
        wait_for(lambda: is_known(client, crew), "both to agree on what there is")
        lost = {step.worker for step in client.fleet_steps() if step.action == "remove"}
        assert lost == {f"local-{gone}"}, "the other workers stayed"


def test_a_store_that_comes_back_empty_costs_no_worker(cluster: Cluster, crew: Crew) -> None:
    before = running(crew)
    cluster.redis(["FLUSHALL"])
    cluster.wait_whole()
    with cluster.client() as client:
        wait_for(lambda: is_known(client, crew), "the fleet to be known again")
    assert running(crew) == before


def test_a_store_that_is_away_stops_the_fleet_and_nothing_else(cluster: Cluster, crew: Crew) -> None:
    before = running(crew)
    cluster.kill_redis()
    try:
        wait_for(lambda: all(_lost(cluster, number) for number in range(2)), "both to miss the store")
        gone = kill_one(crew)
        wait_for(lambda: gone not in running(crew), "it to be gone")
        until = time.monotonic() + AWAY_S
        while time.monotonic() < until:
            assert {one.id for one in crew.members()} <= before, "nobody is ordered"
            assert running(crew) == before - {gone}, "nobody is taken away"
            time.sleep(0.1)
    finally:
        cluster.start_redis()
    cluster.wait_whole()
    wait_for(lambda: len(running(crew)) == WORKERS, "what died meanwhile to be replaced")
    assert running(crew) > before - {gone}


def _lost(cluster: Cluster, controller: int) -> bool:
    system = cluster.system(controller)
    return system is not None and system.store.state == "lost"


def test_both_controllers_killed_the_fleet_serves_on_and_is_taken_over(cluster: Cluster, crew: Crew) -> None:
    before = running(crew)
    for name in cluster.controllers:
        cluster.kill(name)
    assert running(crew) == before
    for name in cluster.controllers:
        cluster.start(name)
    cluster.wait_whole()
    with cluster.client() as client:
        wait_for(lambda: is_known(client, crew), "the fleet to be known again")
    assert running(crew) == before
