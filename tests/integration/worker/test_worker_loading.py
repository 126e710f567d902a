"""Loads that never end, in a worker's process, in one of their own, and on a server: a real worker tells what became of
them and goes on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from worker_values import column, published, x

from infaas.domain.lifecycle import Death, WorkerState
from infaas.domain.variant import Hardware, Isolation, Runtime, Variant
from infaas.testing import graphs
from infaas.testing.worker_driver import ControllerEnd, WorkerProcess
from infaas.triton.reference import FORMAT, Reference, TensorMap, write_reference
from infaas.up.restart import HUNG_EXIT

IMPATIENT = {"load_hang_after_s": 5.0, "hang_factor": 1.0, "cores": 2}
"""But patient enough for loads that do end, on a busy machine."""


@pytest.mark.long
async def test_a_load_that_hangs_in_a_process_of_its_own_is_ended_with_the_reason(start):
    worker = start(worker=IMPATIENT)
    async with ControllerEnd(worker.address) as end:
        endless = published(worker, graphs.endless_to_load(), isolation=Isolation.PROCESS)
        for name in ("i1", "i2"):
            await end.load(name, endless)
        await end.until(lambda: (end.state("i1") or "").startswith("FAILED"))
        assert "it hung: loading is given 5 s" in (end.state("i1") or "")
        await end.ready("i3", published(worker, graphs.double(), "v2"))
        assert end.worker.state is WorkerState.READY


@pytest.mark.long
async def test_a_load_that_hangs_in_the_workers_process_has_the_worker_replaced_which_names_it(start):
    worker = start(worker=IMPATIENT)
    async with ControllerEnd(worker.address) as end:
        await end.load("i1", published(worker, graphs.endless_to_load()))
        await end.until(lambda: bool(end.reports) and end.worker.state is WorkerState.FAILED)
        assert "instance i1 of v1 hung for" in end.worker.reason
        assert "while loading" in end.worker.reason
        assert await worker.ended() == HUNG_EXIT
    worker.start()
    async with ControllerEnd(worker.address) as end:
        await end.until(lambda: bool(end.reports) and "i1" in end.worker.instances)
        assert end.worker.instances["i1"].death is Death.HUNG


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield f"grpc://127.0.0.1:{listener.getsockname()[1]}"


def attached(worker: WorkerProcess, url: str, number: int) -> Variant:
    graph = graphs.double()
    inputs, outputs = (
        tuple(TensorMap(one.name, one.name, one.datatype, one.datatype) for one in specs)
        for specs in (graph.inputs, graph.outputs)
    )
    reference = Reference(FORMAT, url, f"m{number}", "1", inputs, outputs, True, None, 8, 1, Hardware.CPU, "python")
    path = worker.state_dir / f"m{number}.json"
    write_reference(reference, path)
    facts = {"runtime": Runtime.TRITON, "memory_mib": 1.0, "threads": 0, "max_batch": 8}
    return replace(graph.variant(f"remote{number}", **facts), artifact=worker.repository.put_file(path))


async def test_a_server_that_does_not_answer_holds_up_no_load_of_this_machines(start, silent_server):
    worker = start()
    async with ControllerEnd(worker.address) as end:
        for number in range(10):
            await end.load(f"r{number}", attached(worker, silent_server, number))
        await end.ready("local", published(worker, graphs.double()))
        assert "LOADING" in [end.state(f"r{number}") for number in range(10)]
        assert column(await end.infer("local", x(1)), 0) == [2.0]
