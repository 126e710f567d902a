"""What a server runs is not in this process: it is neither suspected of its end nor given a process of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import pytest
from infaas_worker.blackbox import BlackBox
from infaas_worker.decide.events import LoadAsked
from infaas_worker.decide.instances import Instance, InstanceEvent, LoadBegan, Loaded
from infaas_worker.executors.base import BatchIn, BatchOut, Device, Executor, Executors
from infaas_worker.executors.sample import sample
from infaas_worker.loading import Loader
from infaas_worker.residence import Residence

from infaas.domain.ids import InstanceId
from infaas.domain.variant import Hardware, Isolation, Runtime, Variant
from infaas.repository.local import LocalRepository
from infaas.testing import graphs
from infaas.testing.clock import ManualClock

ONE = InstanceId("i1")
CRASH = "Fatal Python error: Segmentation fault\n\n"
"""Of a thread that the interpreter does not know: a runtime's own."""


class Running:
    """A batch that never ends."""

    max_in_flight = 1

    def submit(self, batch: BatchIn) -> Future[BatchOut]:
        return Future()

    def memory_bytes(self) -> int:
        return 1

    def close(self) -> None:
        return


class Loads:
    """An executor of any runtime that keeps what it was asked to load."""

    devices = (Device(Hardware.CPU),)

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.loaded: list[Variant] = []

    def load(self, variant: Variant, artifact: Path) -> Running:
        self.loaded.append(variant)
        return Running()


class Heard:
    """Rules that let everything load."""

    def __init__(self) -> None:
        self.events: asyncio.Queue[InstanceEvent] = asyncio.Queue()

    def tell(self, instance: InstanceId, event: InstanceEvent) -> None:
        self.events.put_nowait(event)

    def ask_load(self, asked: LoadAsked) -> None:
        return

    def instance(self, instance: InstanceId) -> Instance | None:
        return None


def loader(folder: Path, *known: Executor) -> Loader:
    repository = LocalRepository(folder / "artifacts")
    repository.put_bytes(graphs.double().data)
    made: dict[str, Callable[[], Executor]] = {one.runtime.value: lambda one=one: one for one in known}  # type: ignore[misc]
    return Loader(repository, Executors(configured=made))


@pytest.mark.parametrize(("runtime", "blamed"), [(Runtime.ONNXRUNTIME, ["i1"]), (Runtime.TRITON, [])])
async def test_only_what_runs_in_the_process_is_suspected_of_its_crash(tmp_path: Path, runtime, blamed):
    rules, box = Heard(), BlackBox(tmp_path, "w1")
    residence = Residence(loader(tmp_path, Loads(runtime)), ManualClock(), rules, box)
    variant = graphs.double().variant(runtime=runtime)
    residence.add(ONE, variant)
    residence.load(ONE, ())
    while not isinstance(event := await asyncio.wait_for(rules.events.get(), 60.0), Loaded):
        assert isinstance(event, LoadBegan)
    residence.run(ONE, sample(variant, 1, 1))
    (tmp_path / "worker-w1.fault").write_text(CRASH)
    box.abandon()
    again = BlackBox(tmp_path, "w1")
    again.abandon()
    assert [one.instance for one in again.deaths] == blamed


async def test_a_servers_model_is_loaded_by_the_executor_that_has_the_settings_whatever_isolation_is_asked_for(
    tmp_path: Path,
):
    executor = Loads(Runtime.TRITON)
    variant = graphs.double().variant(runtime=Runtime.TRITON, isolation=Isolation.PROCESS)
    await loader(tmp_path, executor).open(variant, lambda: None)
    assert [one.isolation for one in executor.loaded] == [Isolation.THREAD]
