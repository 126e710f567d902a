"""The number of workers follows the load and no query is lost by that, as a user of `infaas up` sees it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from running_system import Callers, Scans, System, left_of, member, wait_for

from infaas.client import Client
from infaas.control import FleetStepDocument
from infaas.errors import UnavailableError
from infaas.up.crew import Crew, MemberState
from infaas.up.record import is_up

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
SETTINGS = {
    "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.1",
    "INFAAS_GENERATOR__MAX_BATCH_SIZE": "4",
    "INFAAS_POOLS": "{local: {workers: 0, min_workers: 1, max_workers: 2, cores: 1, memory_bytes: 1000000000}}",
    "INFAAS_FLEET__PROVIDER": "local",
    "INFAAS_FLEET__PERIOD_S": "0.5",
    "INFAAS_FLEET__UPSCALE_DELAY_S": "1",
    "INFAAS_FLEET__DOWNSCALE_DELAY_S": "3",
}


@pytest.fixture
def system(tmp_path: Path) -> Iterator[System]:
    system = System(tmp_path / "state", SETTINGS)
    crew = Crew(system.folder / "fleet")
    try:
        system.up()
        yield system
    finally:
        system.close()
        wait_for(lambda: all(one.state is MemberState.ENDED for one in crew.members()), "the fleet to end with it")


def workers(client: Client) -> list[str]:
    """That serve."""
    return sorted(one.id for one in client.workers() if one.is_connected and one.state == "READY")


def steps(client: Client) -> list[FleetStepDocument]:
    """Oldest first."""
    return client.fleet_steps(1000)[::-1]


def test_a_worker_comes_with_the_load_and_leaves_after_it_without_losing_a_query(system: System, scans: Scans) -> None:
    with system.client() as client:
        (first,) = wait_for(lambda: workers(client), "the one that is wanted at least")
        assert [(step.action, step.cause, step.worker) for step in steps(client)] == [("add", "floor", first)]
        system.register(member("digits-cnn-large"))
        variant = next(found.name for found in client.variants() if found.recipe == "ort-fp32-t1")

        few, many = Callers(system, variant, scans, 1, rest_s=0.5), Callers(system, variant, scans, 4)
        with few.asking():
            with many.asking():
                wait_for(lambda: len(workers(client)) == 2, "a second worker under load")
                added = next(step for step in steps(client)[1:] if step.action != "hold")
                assert (added.action, added.cause in ("demand", "busy")) == ("add", True)
                wait_for(lambda: len(_used(client)) == 2, "the second worker to be used")
                (loaded,) = (step for step in steps(client) if step.action == "load")
                assert (loaded.cause, loaded.worker != first, loaded.variant) == ("busy", True, variant)
                assert loaded.reason.startswith(f"{variant}: its instance runs ")
                fleet = client.fleet()
                assert fleet.there_cores == 2
                assert (fleet.demand_cores or 0.0) > 0.7
            wait_for(lambda: len(client.workers()) == 1, "one of them to be taken away")
            told = [step for step in steps(client) if step.action in ("drain", "remove")]
            assert [step.action for step in told] == ["drain", "remove"]
            assert told[-1].worker == told[-2].worker
            assert "cores are wanted of 2; 1 cores without it" in told[-2].reason
            before = few.answers
            wait_for(lambda: few.answers > before + 5, "the rest to go on")
        assert [*few.failures, *many.failures] == []
        assert few.mixed_up == many.mixed_up == 0

        said = system.infaas("autoscaler", "history")
        assert "it has drained and holds nothing" in said
        assert "POOL" in system.infaas("autoscaler", "status")


def test_who_dies_is_replaced_whoever_leads_and_all_end_with_the_system(system: System) -> None:
    crew = Crew(system.folder / "fleet")
    with system.client() as client:
        (first,) = wait_for(lambda: workers(client), "a worker")
        (one,) = crew.members()
        assert one.pid is not None
        os.kill(one.pid, signal.SIGKILL)
        (second,) = wait_for(
            lambda: [id for id in workers(client) if id != first], "another worker in the place of the killed one"
        )
        ended = next(step for step in steps(client) if step.cause == "ended")
        assert ended.worker == first
        log = ended.reason.rpartition(" ")[2]
        assert Path(log).is_file()
        before = _leader(client)

    controller = system.kill("controller")
    system.wait_restarted(controller)
    with system.client() as client:
        wait_for(lambda: _leader(client) not in (None, before), "the new leader to look")
        assert workers(client) == [second]
        assert client.fleet().pools[0].own == 1, "it knows what another has made"

    (member,) = crew.members()
    assert member.state is MemberState.RUNNING
    process = psutil.Process(member.pid)
    system.down()
    assert crew.members() == []
    assert left_of([process]) == []


def test_in_a_hurry_workers_that_stand_still_end_as_well(system: System) -> None:
    crew = Crew(system.folder / "fleet")
    with system.client() as client:
        wait_for(lambda: workers(client), "a worker")
    (one,) = crew.members()
    assert one.pid is not None
    os.kill(one.pid, signal.SIGSTOP)
    before = system.record
    system.infaas("down", "--force")
    assert system.record.state == "stopped"
    assert not is_up(before)
    assert crew.members() == []


def test_bounds_without_a_provider_and_a_provider_without_cores_are_refused_in_words(tmp_path: Path) -> None:
    pools = "{local: {min_workers: 1, max_workers: 2}}"
    said = System(tmp_path / "one", {"INFAAS_POOLS": pools}).infaas("up", "--detach", expect=None)
    assert "pools.local has min_workers or max_workers, which nobody keeps: set fleet.provider" in said
    settings = {"INFAAS_POOLS": pools, "INFAAS_FLEET__PROVIDER": "local"}
    said = System(tmp_path / "two", settings).infaas("up", "--detach", expect=None)
    assert "pools.local.cores is not set: the fleet must know how many cores one of its workers has" in said


def _used(client: Client) -> set[str]:
    """Workers that have served some queries."""
    return {one.id for one in client.workers() if sum(each.items_done for each in one.instances) > 20}


def _leader(client: Client) -> str | None:
    """Who has looked at the fleet."""
    try:
        return client.fleet().controller
    except UnavailableError:
        return None
