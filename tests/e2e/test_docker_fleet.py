"""The number of workers follows the load where they are containers, with controllers on the engine's machine."""

from __future__ import annotations

import asyncio
import json
import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import running_system
from infaas_controller.providers.base import Order
from infaas_controller.providers.docker import DockerProvider
from running_system import Callers, Found, Scans, System, member

from infaas.client import Client
from infaas.control import FleetStepDocument
from infaas.domain.ids import WorkerId
from infaas.errors import InfaasError
from infaas.settings import load_settings

if TYPE_CHECKING:
    from docker_engine import DockerEngine, Network

    from tests.conftest import RedisServer

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]
TOKEN = "a-token-of-tests"
POOL = {"workers": 0, "max_workers": 2, "cores": 1, "memory_bytes": 2**29, "cpu_limit": 0.3, "startup_s": 10.0}
DRAIN_S = 5.0
PATIENCE_S = 300.0
"""Machines that have an engine do much else."""


class DockerSystem(System):
    """A controller and a generator on this machine; workers are containers."""

    def client(self, token: str | None = TOKEN) -> Client:
        return super().client(token)

    def infaas(self, *words: str | Path, expect: int | None = 0, timeout_s: float = PATIENCE_S) -> str:
        return super().infaas(*words, expect=expect, timeout_s=timeout_s)


@dataclass
class Site:
    """Where systems come up, one after the other: their network, store and folder stay."""

    engine: DockerEngine
    network: Network
    store_url: str
    folder: Path

    def system(self, **pool: object) -> DockerSystem:
        """`pool` is laid over that of the workers."""
        return DockerSystem(self.folder, self.settings(**pool))

    def settings(self, **pool: object) -> dict[str, str]:
        artifacts = self.folder / "artifacts"
        port = self.store_url.rpartition(":")[2]
        docker = {
            "url": self.engine.url,
            "image": self.engine.image,
            "network": self.network.name,
            "volumes": [f"{artifacts}:/artifacts:ro"],
            # The machine has another address for those in the network.
            "environment": {
                "INFAAS_STORE__REDIS_URL": f"redis://{self.network.gateway}:{port}",
                "INFAAS_REPOSITORY__URL": "/artifacts",
            },
        }
        return {
            "INFAAS_TOKEN": TOKEN,
            "INFAAS_AUTH__TOKEN": TOKEN,
            "INFAAS_STORE__REDIS_URL": self.store_url,
            "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.1",
            "INFAAS_GENERATOR__MAX_BATCH_SIZE": "4",
            "INFAAS_WORKER__DRAIN_TIMEOUT_S": str(DRAIN_S),
            "INFAAS_POOLS": json.dumps({"small": POOL | pool}),
            "INFAAS_FLEET__PROVIDER": "docker",
            "INFAAS_FLEET__DOCKER": json.dumps(docker),
            "INFAAS_FLEET__PERIOD_S": "0.5",
            "INFAAS_FLEET__UPSCALE_DELAY_S": "1",
            "INFAAS_FLEET__DOWNSCALE_DELAY_S": "3",
        }

    def containers(self) -> list[str]:
        return self.network.containers("-a")


@pytest.fixture
def site(docker_engine: DockerEngine, own_tcp_redis: str) -> Iterator[Site]:
    from docker_engine import Network

    network = Network(docker_engine)
    # Not `tmp_path`: containers' users may not look into that one.
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        try:
            yield Site(docker_engine, network, own_tcp_redis, Path(folder) / "state")
        finally:
            print(network.logs())
            network.remove()


@pytest.fixture
def own_tcp_redis(own_redis_server: RedisServer) -> str:
    """That containers reach as well."""
    own_redis_server.kill()
    with socket.create_server(("", 0)) as probe:
        port = probe.getsockname()[1]
    own_redis_server.start("--port", str(port), "--bind", "0.0.0.0", "--protected-mode", "no")
    wait_for(lambda: _accepts(port), "the store to listen")
    return f"redis://127.0.0.1:{port}"


def test_containers_come_with_the_load_and_leave_after_it_without_losing_a_query(site: Site, scans: Scans) -> None:
    system = site.system(min_workers=1)
    try:
        system.up()
        with system.client() as client:
            (first,) = wait_for(lambda: workers(client), "the one that is wanted at least")
            (container,) = site.containers()
            assert first == f"small-{container.removeprefix('infaas-')}"
            system.register(member("digits-cnn-large"))
            variant = next(found.name for found in client.variants() if found.recipe == "ort-fp32-t1")

            few, many = Callers(system, variant, scans, 1, rest_s=0.5), Callers(system, variant, scans, 4)
            with few.asking():
                with many.asking():
                    wait_for(lambda: len(workers(client)) == 2, "a second worker under load")
                    assert len(site.containers()) == 2
                    wait_for(lambda: len(used(client)) == 2, "the second worker to be used")
                wait_for(lambda: len(client.workers()) == 1, "one of them to be taken away")
                wait_for(lambda: len(site.containers()) == 1, "its container to be gone")
                told = [step for step in steps(client) if step.action in ("drain", "remove")]
                assert [step.action for step in told] == ["drain", "remove"]
                before = few.answers
                wait_for(lambda: few.answers > before + 5, "the rest to go on")
            assert [*few.failures, *many.failures] == []
            assert few.mixed_up == many.mixed_up == 0
        assert "docker" in system.infaas("autoscaler", "status")
        left = site.containers()
        system.down()
        assert site.containers() == left, "containers outlive their controller"
    finally:
        system.close()

    emptied = site.system(max_workers=0)
    try:
        emptied.up()
        wait_for(lambda: site.containers() == [], "a pool that is kept no more to be emptied")
        emptied.down()
    finally:
        emptied.close()


def test_who_is_killed_is_replaced_and_what_nobody_ordered_goes(site: Site, scans: Scans) -> None:
    system = site.system(min_workers=1)
    try:
        system.up()
        with system.client() as client:
            (first,) = wait_for(lambda: workers(client), "a worker")
            (container,) = site.containers()
            site.engine.engine.run("kill", "-s", "KILL", container)
            wait_for(lambda: [id for id in workers(client) if id != first], "another one in its place")
            wait_for(lambda: container not in site.containers(), "the dead one to be cleared away")
            ended = next(step for step in steps(client) if step.cause == "ended")
            assert (ended.worker, "exit code 137" in ended.reason) == (first, True)

            # As a leader that was deposed may still do.
            epoch = _order_of(site).epoch
            stray = Order("f-of-nobody", "small", WorkerId("small-f-of-nobody"), 1_700_000_000.0, epoch)
            _create(site, stray)
            wait_for(lambda: "infaas-f-of-nobody" not in site.containers(), "what no intent stands behind to go")
            assert any(step.worker == stray.worker and step.cause == "unknown" for step in steps(client))
            assert len(site.containers()) == 1
        system.down()
    finally:
        system.close()


def test_a_controller_that_is_a_container_itself_makes_others(site: Site) -> None:
    """As in a compose file: with the engine's socket mounted, in the network of its workers."""
    inside = "/run/engine.sock"
    told = site.settings(min_workers=1)
    there = json.loads(told["INFAAS_FLEET__DOCKER"])
    there["volumes"] = []
    environment = there.pop("environment")
    there["url"] = f"unix://{inside}"
    told |= {
        "INFAAS_STORE__REDIS_URL": environment["INFAAS_STORE__REDIS_URL"],
        "INFAAS_FLEET__DOCKER": json.dumps(there),
        "INFAAS_CONTROLLER__HOST": "0.0.0.0",
    }
    engine, own = site.engine.engine, f"{site.network.name}-controller"
    if engine.name == "podman":
        site.engine.socket.chmod(0o660)  # a service of the tests' own
    words = [word for name, value in told.items() for word in ("-e", f"{name}={value}")]
    words += ["-v", f"{site.engine.socket}:{inside}", "--group-add", str(site.engine.socket.stat().st_gid)]
    engine.run(
        "run", "-d", "--name", own, "--network", site.network.name, *words, site.engine.image, "run", "controller"
    )

    (joined,) = site.engine.inspected(own)["NetworkSettings"]["Networks"].values()
    with Client(f"http://{joined['IPAddress']}:8000", TOKEN, timeout_s=PATIENCE_S) as client:
        (worker,) = wait_for(lambda: _workers_once_it_listens(client), "a worker of the controller's own")
        found = next(one for one in client.workers() if one.id == worker)
        (container,) = [name for name in site.containers() if name != own]
        (address,) = site.engine.inspected(container)["NetworkSettings"]["Networks"].values()
        assert found.address == f"{address['IPAddress']}:9000"
        assert client.fleet().provider == "docker"


def wait_for(question: Callable[[], Found], what: str) -> Found:
    return running_system.wait_for(question, what, PATIENCE_S)


def workers(client: Client) -> list[str]:
    """That serve."""
    return sorted(one.id for one in client.workers() if one.is_connected and one.state == "READY")


def _workers_once_it_listens(client: Client) -> list[str]:
    try:
        return workers(client)
    except InfaasError as error:
        print(f"not yet: {error}")
        return []


def used(client: Client) -> set[str]:
    """Workers that have served some queries."""
    return {one.id for one in client.workers() if sum(each.items_done for each in one.instances) > 20}


def steps(client: Client) -> list[FleetStepDocument]:
    """Oldest first."""
    return client.fleet_steps(1000)[::-1]


def _provider(site: Site) -> DockerProvider:
    environ = site.settings() | {"INFAAS_STATE_DIR": str(site.folder)}
    return DockerProvider(load_settings(environ=environ))


def _order_of(site: Site) -> Order:
    (machine,) = asyncio.run(_provider(site).list())
    return machine.order


def _create(site: Site, order: Order) -> None:
    asyncio.run(_provider(site).create(order))


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
