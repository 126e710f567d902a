"""What the provider `docker` promises beyond what every provider does, at a real engine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from docker_engine import DockerEngine, Network, podman_service
from infaas_controller.providers.base import Machine, MachineState, Order, ProviderError
from infaas_controller.providers.docker import DockerProvider
from infaas_controller.providers.docker_container import container_name

from infaas.domain.ids import WorkerId, fresh_id
from infaas.settings import load_settings
from infaas.store.base import Kind
from infaas.store.redis import RedisStore

if TYPE_CHECKING:
    from tests.conftest import RedisServer

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
TOKEN = "a-token-of-tests"
POOL = {"workers": 0, "max_workers": 3, "cores": 1, "memory_bytes": 2**28, "cpu_limit": 0.5}
PATIENCE_S = 60.0


class Yard:
    """A network of the engine, and providers that make containers in it."""

    def __init__(self, engine: DockerEngine, network: Network, redis: RedisServer, folder: Path) -> None:
        self.engine = engine
        self.network = network
        self._socket = Path(redis.url.removeprefix("unix://"))
        self._socket.chmod(0o777)  # a container's user is another one
        self._folder = folder
        self._made: list[DockerProvider] = []

    def provider(self, pool: dict[str, Any] | None = None, **docker: Any) -> DockerProvider:
        told: dict[str, Any] = {
            "url": self.engine.url,
            "image": self.engine.image,
            "network": self.network.name,
            "volumes": [f"{self._socket}:/run/redis.sock"],
            "environment": {"INFAAS_STORE__REDIS_URL": "unix:///run/redis.sock"},
        }
        settings = load_settings(
            environ={},
            overrides={
                "state_dir": str(self._folder),
                "store": {"redis_url": f"unix://{self._socket}"},
                "auth": {"token": TOKEN},
                "pools": {"small": pool or POOL},
                "fleet": {"provider": "docker", "docker": told | docker},
                "worker": {"drain_timeout_s": 1.0},
            },
        )
        self._made.append(DockerProvider(settings))
        return self._made[-1]

    def close(self) -> None:
        for provider in self._made:
            if provider._client is not None:
                provider._client.close()


@pytest.fixture
def yard(docker_engine: DockerEngine, redis_server: RedisServer, tmp_path: Path) -> Iterator[Yard]:
    network = Network(docker_engine)
    yard = Yard(docker_engine, network, redis_server, tmp_path)
    try:
        yield yard
    finally:
        print(network.logs())
        yard.close()
        network.remove()


@pytest.fixture
async def store(redis_server: RedisServer) -> AsyncIterator[RedisStore]:
    store = RedisStore(redis_server.url)
    try:
        yield store
    finally:
        await store.close()


def an_order() -> Order:
    id = fresh_id("f")
    return Order(id, "small", WorkerId(f"small-{id}"), 1_700_000_000.25, "epoch")


async def until(question: Callable[[], Awaitable[object]], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await question():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        await asyncio.sleep(0.05)


async def ended(provider: DockerProvider, order: Order) -> Machine:
    async def has_ended() -> bool:
        return [one.state for one in await provider.list()] == [MachineState.ENDED]

    await until(has_ended, f"{order.worker} to have ended")
    (machine,) = await provider.list()
    return machine


async def test_clusters_of_one_engine_have_nothing_to_do_with_each_other(yard: Yard) -> None:
    blue, green = yard.provider(cluster="blue"), yard.provider(cluster="green")
    order, other = an_order(), an_order()
    await blue.create(order)
    await green.create(other)

    assert [one.order for one in await blue.list()] == [order]
    assert [one.order for one in await green.list()] == [other]
    for attempt in (green.remove(order.id), green.create(order)):
        with pytest.raises(ProviderError, match="is not this cluster's \\('green'\\): it is left alone"):
            await attempt
    await until(lambda: green.remove(other.id), "the other one to be gone")
    assert [one.order for one in await blue.list()] == [order]
    assert yard.network.containers() == [container_name(order.id)]


async def test_containers_of_others_are_not_seen(yard: Yard) -> None:
    words = ("run", "-d", "--network", yard.network.name, "--entrypoint", "sleep", yard.engine.image, "600")
    yard.engine.engine.run(*words)
    assert list(await yard.provider().list()) == []


async def test_an_image_that_is_not_there_is_named_with_what_to_do(yard: Yard) -> None:
    provider = yard.provider(image="localhost/infaas-nowhere:1")
    with pytest.raises(ProviderError) as raised:
        await provider.create(an_order())
    assert "there is no image 'localhost/infaas-nowhere:1' at unix://" in raised.value.text
    assert "pull it there, or build it from deploy/Dockerfile" in raised.value.text
    assert list(await provider.list()) == []


async def test_an_image_of_root_is_refused(yard: Yard) -> None:
    provider = yard.provider(image="docker.io/library/python:3.11-slim")
    with pytest.raises(ProviderError, match=r"runs as root, which no worker needs: set fleet\.docker\.user"):
        await provider.create(an_order())


async def test_what_the_engine_refuses_is_said_in_its_words_and_can_be_removed(yard: Yard) -> None:
    provider, order = yard.provider(network="no-such-network"), an_order()
    with pytest.raises(ProviderError, match=r"the engine refuses: .*no-such-network"):
        await provider.create(order)
    await until(lambda: provider.remove(order.id), "nothing to be left of it")
    assert list(await provider.list()) == []


async def test_a_worker_is_limited_has_no_rights_and_says_where_it_is(yard: Yard, store: RedisStore) -> None:
    provider, order = yard.provider(), an_order()
    await provider.create(order)
    await until(lambda: store.get(Kind.WORKER, order.worker), "the worker to register")
    name, run = container_name(order.id), yard.engine.engine.run

    asked = "import os; from infaas import machine as m; print(os.getuid(), m.cpu_quota(), m.memory_limit_bytes())"
    assert run("exec", name, "python", "-c", asked).split() == ["10001", "0.5", str(2**28 + 2**29)]
    status = run("exec", name, "sh", "-c", "cat /proc/$(echo $(cat /proc/1/task/1/children))/status")
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status

    found = yard.engine.inspected(name)
    assert found["HostConfig"]["RestartPolicy"]["Name"] in ("", "no")
    assert TOKEN not in str(found["Config"]["Labels"])
    (joined,) = found["NetworkSettings"]["Networks"].values()
    value = await store.get(Kind.WORKER, order.worker)
    assert value is not None
    assert json.loads(value.value)["address"] == f"{joined['IPAddress']}:9000"
    await until(lambda: provider.remove(order.id), "nothing to be left of it")
    assert await store.get(Kind.WORKER, order.worker) is None


async def test_a_worker_that_cannot_live_says_why_as_long_as_it_is_listed(yard: Yard) -> None:
    provider, order = yard.provider(pool=POOL | {"cores": 1000}), an_order()
    await provider.create(order)
    machine = await ended(provider, order)
    assert machine.said.startswith("exit code 2; its log ends with: ")
    assert "1000 cores are wanted" in machine.said
    await until(lambda: provider.remove(order.id), "nothing to be left of it")


async def test_a_container_that_was_made_and_not_started_is_started_by_the_next_order(yard: Yard) -> None:
    provider, order = yard.provider(), an_order()
    await provider.create(order)
    name = container_name(order.id)
    made = provider._client.inspect_container(name)["Config"]
    yard.engine.engine.run("rm", "-f", name)
    labels = [word for key, value in made["Labels"].items() for word in ("--label", f"{key}={value}")]
    yard.engine.engine.run("create", "--name", name, "--network", yard.network.name, *labels, yard.engine.image)
    assert list(await provider.list()) == [Machine(order, MachineState.STARTING)]

    await yard.provider().create(order)

    assert [one.state for one in await provider.list()] != [MachineState.STARTING]


async def test_a_container_that_is_paused_is_taken_away_all_the_same(yard: Yard) -> None:
    provider, order = yard.provider(), an_order()
    await provider.create(order)
    yard.engine.engine.run("pause", container_name(order.id))
    await until(lambda: provider.remove(order.id), "nothing to be left of it")
    assert yard.network.containers("-a") == []


async def test_an_engine_that_goes_and_comes_back_is_found_again(yard: Yard) -> None:
    if yard.engine.engine.name != "podman":
        pytest.skip("only podman's engine can be had to oneself, to be stopped")
    order = an_order()
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        socket = Path(folder) / "own.sock"
        provider = yard.provider(url=f"unix://{socket}")
        with podman_service(socket):
            await provider.create(order)
        with pytest.raises(ProviderError, match=f"the engine at unix://{socket} cannot be reached"):
            await provider.list()
        socket.unlink(missing_ok=True)
        with podman_service(socket):
            assert [one.order for one in await provider.list()] == [order]
            await until(lambda: provider.remove(order.id), "nothing to be left of it")


async def test_an_engine_that_does_not_answer_is_not_waited_for_for_ever(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    if yard.engine.engine.name != "podman":
        pytest.skip("only podman's engine can be had to oneself, to be stopped")
    monkeypatch.setattr("infaas_controller.providers.docker.CALL_TIMEOUT_S", 3.0)
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        socket = Path(folder) / "own.sock"
        provider = yard.provider(url=f"unix://{socket}")
        with podman_service(socket) as service:
            assert list(await provider.list()) == []
            os.kill(service.pid, signal.SIGSTOP)
            try:
                with pytest.raises(ProviderError, match=r"cannot be reached: .*timed out"):
                    await provider.list()
            finally:
                os.kill(service.pid, signal.SIGCONT)
            assert list(await provider.list()) == []
