"""What every provider of workers must do, with machines that run real workers. A new provider is one more house."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from docker_engine import DockerEngine, Network
from infaas_controller.providers.base import Machine, MachineState, Order, Provider
from infaas_controller.providers.docker import DockerProvider
from infaas_controller.providers.local import LocalProvider

from infaas.domain.cluster import WorkerRecord
from infaas.domain.ids import WorkerId, fresh_id
from infaas.domain.lifecycle import WorkerState
from infaas.errors import UnavailableError
from infaas.rpc.codec import decode
from infaas.settings import load_settings
from infaas.store.base import Kind
from infaas.store.redis import RedisStore

if TYPE_CHECKING:
    from tests.conftest import RedisServer

PATIENCE_S = 60.0
DRAIN_S = 3.0
"""For which a worker that is told to end may go on, and a while longer before it is killed."""
POOL = {"workers": 0, "max_workers": 3, "cores": 1, "memory_bytes": 2**28}
ALIVE = (MachineState.STARTING, MachineState.RUNNING)


@dataclass
class House:
    """Where a provider makes its machines, and what happens to them without it. Machines are named as the provider
    names them."""

    make: Callable[[], Provider]
    """A provider as every controller of the cluster has one."""
    alive: Callable[[], set[str]]
    """The workers that run, by the names they were given, whatever the provider says."""
    signal: Callable[[str, signal.Signals], None]
    """To the process of a worker, by that name."""
    cut: Callable[[], None]
    """Make whatever the provider depends on unusable; nothing was made before."""
    said: Callable[[], str]
    """What the workers said, for people."""


@contextmanager
def local_house(redis_url: str, request: pytest.FixtureRequest) -> Iterator[House]:
    """Told by variables: a worker of this machine gets those of its controller."""
    monkeypatch: pytest.MonkeyPatch = request.getfixturevalue("monkeypatch")
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        for name in os.environ:
            if name.startswith("INFAAS_"):
                monkeypatch.delenv(name)
        for name, value in {
            "STATE_DIR": folder,
            "STORE__REDIS_URL": redis_url,
            "FLEET__PROVIDER": "local",
            "POOLS": json.dumps({"small": POOL}),
            "WORKER__HEARTBEAT_S": "10",  # so that no record is gone because it expired
            "WORKER__DRAIN_TIMEOUT_S": str(DRAIN_S),
            # Of another worker, which none of the machines is to be.
            "WORKER__ID": "another",
            "WORKER__POOL": "another",
            "WORKER__LISTEN": f"unix:{folder}/another.sock",
            "WORKER__ADVERTISE": f"unix:{folder}/another.sock",
            "WORKER__MEMORY_BYTES": "1048576",
        }.items():
            monkeypatch.setenv(f"INFAAS_{name}", value)
        settings = load_settings()
        fleet = Path(folder) / "fleet"
        made: list[LocalProvider] = []

        def make() -> LocalProvider:
            made.append(LocalProvider(settings))
            return made[-1]

        def processes() -> dict[int, str]:
            told = {one.pid: one.info["environ"] or {} for one in psutil.process_iter(["environ"])}
            ours = {pid: environ for pid, environ in told.items() if environ.get("INFAAS_STATE_DIR") == folder}
            return {pid: environ.get("INFAAS_WORKER__ID", "") for pid, environ in ours.items() if pid != os.getpid()}

        def send(worker: str, number: signal.Signals) -> None:
            (pid,) = [pid for pid, name in processes().items() if name == worker]
            os.kill(pid, number)

        try:
            yield House(
                make=make,
                alive=lambda: set(processes().values()),
                signal=send,
                cut=fleet.touch,
                said=lambda: "\n".join(log.read_text() for log in fleet.glob("*.log")),
            )
        finally:
            while left := processes():
                for pid in left:
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        pass
            for provider in made:
                for process in provider._crew._children:
                    process.wait()


@contextmanager
def docker_house(redis_url: str, request: pytest.FixtureRequest) -> Iterator[House]:
    """Containers of an image of this checkout, in a network of their own. The store is a socket that they mount."""
    engine: DockerEngine = request.getfixturevalue("docker_engine")
    store = Path(redis_url.removeprefix("unix://"))
    store.chmod(0o777)  # a container's user is another one
    network = Network(engine)
    with tempfile.TemporaryDirectory(prefix="infaas-") as folder:
        way = Path(folder) / "engine.sock"
        way.symlink_to(engine.socket)
        told = {
            "state_dir": folder,
            "store": {"redis_url": redis_url},
            "auth": {"token": "a-token-of-tests"},
            "pools": {"small": POOL},
            "fleet": {
                "provider": "docker",
                "docker": {
                    "url": f"unix://{way}",
                    "image": engine.image,
                    "network": network.name,
                    "volumes": [f"{store}:/run/redis.sock"],
                    "environment": {"INFAAS_STORE__REDIS_URL": "unix:///run/redis.sock"},
                },
            },
            # The first is so long that no record is gone because it expired; the rest is another worker's, which none
            # of the machines is to be.
            "worker": {
                "heartbeat_s": 10,
                "drain_timeout_s": DRAIN_S,
                "id": "another",
                "pool": "another",
                "listen": f"unix:{folder}/another.sock",
                "advertise": f"unix:{folder}/another.sock",
                "memory_bytes": 2**20,
            },
        }
        settings = load_settings(environ={}, overrides=told)
        made: list[DockerProvider] = []

        def make() -> DockerProvider:
            made.append(DockerProvider(settings))
            return made[-1]

        def worker_of(container: str) -> str:
            environ = dict(one.split("=", 1) for one in engine.inspected(container)["Config"]["Env"])
            return str(environ["INFAAS_WORKER__ID"])

        def send(worker: str, number: signal.Signals) -> None:
            (container,) = [name for name in network.containers() if worker_of(name) == worker]
            word = f"kill -s {number.name.removeprefix('SIG')} $(cat /proc/1/task/1/children)"
            engine.engine.run("exec", container, "sh", "-c", word)  # the first process is the engine's own

        try:
            yield House(
                make=make,
                alive=lambda: {worker_of(name) for name in network.containers()},
                signal=send,
                cut=way.unlink,
                said=network.logs,
            )
        finally:
            for provider in made:
                if provider._client is not None:
                    provider._client.close()
            network.remove()


HOUSES = {"local": local_house, "docker": docker_house}
MARKS = {"local": (), "docker": (pytest.mark.long, pytest.mark.timeout(900))}


@dataclass
class Town:
    """A house, and the store that its workers register with."""

    house: House
    store: RedisStore
    orders: list[Order] = field(default_factory=list)

    def order(self) -> Order:
        id = fresh_id("f")
        self.orders.append(Order(id, "small", WorkerId(f"small-{id}"), 1_700_000_000.25, "epoch-of-the-store"))
        return self.orders[-1]

    async def record(self, order: Order) -> WorkerRecord | None:
        found = await self.store.get(Kind.WORKER, order.worker)
        return None if found is None else decode(found.value, WorkerRecord)

    async def is_ready(self, order: Order) -> bool:
        record = await self.record(order)
        return record is not None and record.state is WorkerState.READY

    async def until(self, question: Callable[[], Awaitable[object]], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not await question():
            assert time.monotonic() < deadline, f"waited in vain: {what}\n{self.house.said()}"
            await asyncio.sleep(0.02)

    async def running(self, provider: Provider) -> Order:
        """A machine whose worker is ready."""
        order = self.order()
        await provider.create(order)
        await self.until(lambda: self.is_ready(order), f"{order.worker} to be ready")
        return order

    async def die(self, provider: Provider, order: Order) -> None:
        self.house.signal(order.worker, signal.SIGKILL)
        await self.until(lambda: _is(provider, order, MachineState.ENDED), f"{order.worker} to have ended")

    async def removed(self, provider: Provider, order: Order) -> None:
        await self.until(lambda: provider.remove(order.id), f"nothing to be left of {order.worker}")


@pytest.fixture(params=[pytest.param(name, marks=MARKS[name]) for name in HOUSES])
async def town(request: pytest.FixtureRequest, redis_server: RedisServer) -> AsyncIterator[Town]:
    store = RedisStore(redis_server.url)
    with HOUSES[request.param](redis_server.url, request) as house:
        town = Town(house, store)
        try:
            yield town
        finally:
            for order in town.orders:
                await store.delete(Kind.WORKER, order.worker)
            await store.close()


async def _is(provider: Provider, order: Order, *states: MachineState) -> bool:
    return [one.state in states for one in await provider.list() if one.order.id == order.id] == [True]


async def shown(provider: Provider) -> dict[str, MachineState]:
    machines = await provider.list()
    found = {one.order.id: one.state for one in machines}
    assert len(found) == len(machines), "a machine is listed once"
    return found


async def test_nothing_is_listed_at_first(town: Town) -> None:
    assert list(await town.house.make().list()) == []
    assert town.house.alive() == set()


async def test_a_machine_is_listed_with_its_order_as_soon_as_it_was_asked_for(town: Town) -> None:
    provider, order = town.house.make(), town.order()
    await provider.create(order)
    (machine,) = await provider.list()
    assert machine.order == Order(order.id, "small", order.worker, 1_700_000_000.25, "epoch-of-the-store")
    assert machine.state in ALIVE


async def test_a_machine_comes_to_run_the_worker_that_was_ordered(town: Town) -> None:
    provider = town.house.make()

    order = await town.running(provider)

    assert list(await provider.list()) == [Machine(order, MachineState.RUNNING)]
    record = await town.record(order)
    assert record is not None
    assert (record.id, record.pool, record.cores, record.memory_bytes) == (order.worker, "small", 1, 2**28)
    assert "another" not in record.address
    assert town.house.alive() == {order.worker}


async def test_a_machine_that_is_ordered_again_is_the_same_one(town: Town) -> None:
    first, other = town.house.make(), town.house.make()
    order = town.order()
    for provider in (first, first, other):
        await provider.create(order)
    await town.until(lambda: town.is_ready(order), "the worker to be ready")
    before = await town.record(order)

    for provider in (first, other):
        await provider.create(order)
        assert list(await provider.list()) == [Machine(order, MachineState.RUNNING)]

    after = await town.record(order)
    assert before is not None
    assert after is not None
    assert (after.host, after.pid, after.started_at) == (before.host, before.pid, before.started_at)
    assert town.house.alive() == {order.worker}


async def test_every_controller_finds_and_removes_what_another_one_made(town: Town) -> None:
    order = await town.running(town.house.make())
    other = town.house.make()
    assert list(await other.list()) == [Machine(order, MachineState.RUNNING)]
    await town.removed(other, order)
    assert town.house.alive() == set()
    assert list(await town.house.make().list()) == []


async def test_a_machine_that_died_is_listed_as_ended_and_says_where_to_read_why(town: Town) -> None:
    provider = town.house.make()
    order = await town.running(provider)

    await town.die(provider, order)

    for one in (provider, town.house.make()):
        (machine,) = await one.list()
        assert (machine.order, machine.state) == (order, MachineState.ENDED)
        assert machine.said


async def test_a_machine_that_died_does_not_come_back_under_its_name(town: Town) -> None:
    provider = town.house.make()
    order = await town.running(provider)
    await town.die(provider, order)

    await provider.create(order)
    await town.house.make().create(order)
    after = await town.running(provider)

    assert await shown(provider) == {order.id: MachineState.ENDED, after.id: MachineState.RUNNING}
    assert town.house.alive() == {after.worker}


async def test_the_worker_of_a_removed_machine_ends_in_order(town: Town) -> None:
    provider = town.house.make()
    order = await town.running(provider)

    assert not await provider.remove(order.id), "it is asked first"
    await town.removed(provider, order)

    assert await town.record(order) is None, "it has withdrawn its record"
    assert list(await provider.list()) == []
    assert town.house.alive() == set()
    assert await provider.remove(order.id), "and may be asked again"


async def test_a_machine_is_listed_until_nothing_is_left_of_it(town: Town) -> None:
    provider = town.house.make()
    order = await town.running(provider)
    town.house.signal(order.worker, signal.SIGSTOP)

    assert not await provider.remove(order.id)

    assert await shown(provider) == {order.id: MachineState.RUNNING}
    town.house.signal(order.worker, signal.SIGCONT)
    await town.removed(provider, order)
    assert await shown(provider) == {}


@pytest.mark.long
async def test_a_worker_that_does_not_end_in_its_time_is_made_to(town: Town) -> None:
    provider = town.house.make()
    order = await town.running(provider)
    town.house.signal(order.worker, signal.SIGSTOP)

    await town.removed(provider, order)

    assert town.house.alive() == set()
    assert await shown(provider) == {}


async def test_a_machine_that_died_can_be_removed(town: Town) -> None:
    provider = town.house.make()
    order = await town.running(provider)
    await town.die(provider, order)
    await town.removed(provider, order)
    assert list(await provider.list()) == []


async def test_a_machine_that_is_removed_as_it_begins_leaves_nothing(town: Town) -> None:
    provider, order = town.house.make(), town.order()
    await provider.create(order)
    await town.removed(provider, order)
    assert town.house.alive() == set()
    assert list(await provider.list()) == []
    assert await town.record(order) is None


async def test_of_a_machine_that_nobody_made_nothing_is_left(town: Town) -> None:
    provider = town.house.make()
    assert await provider.remove(town.order().id)
    order = await town.running(provider)
    assert await provider.remove(town.order().id)
    assert await shown(provider) == {order.id: MachineState.RUNNING}


async def test_machines_have_nothing_to_do_with_each_other(town: Town) -> None:
    provider = town.house.make()
    dying, leaving, staying = await asyncio.gather(*(town.running(provider) for _ in range(3)))
    assert await shown(provider) == dict.fromkeys((dying.id, leaving.id, staying.id), MachineState.RUNNING)

    await town.die(provider, dying)
    assert town.house.alive() == {leaving.worker, staying.worker}
    await town.removed(provider, leaving)
    assert await shown(provider) == {dying.id: MachineState.ENDED, staying.id: MachineState.RUNNING}
    await town.removed(provider, dying)

    assert list(await provider.list()) == [Machine(staying, MachineState.RUNNING)]
    assert town.house.alive() == {staying.worker}
    assert await town.is_ready(staying)


async def test_a_provider_that_cannot_make_a_machine_says_so(town: Town) -> None:
    provider = town.house.make()
    town.house.cut()
    with pytest.raises(UnavailableError):
        await provider.create(town.order())


async def test_a_provider_that_cannot_be_reached_does_not_say_that_there_is_nothing(town: Town) -> None:
    provider = town.house.make()
    town.house.cut()
    with pytest.raises(UnavailableError):
        await provider.list()
    with pytest.raises(UnavailableError):
        await provider.remove(town.order().id)
