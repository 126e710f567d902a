"""Inputs that end whatever runs them, against a whole system: at most two instances die, one 500, then a refusal.

The model is a real graph in ONNX Runtime: one value of its input makes the processor refuse a division, so that the
process dies by SIGFPE; another keeps it busy for ever. Others ask all the while, and lose nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from running_system import PATIENCE_S, System, running, wait_for

from infaas.client import Client, QueryError
from infaas.control import WorkerInstanceDocument
from infaas.domain.query import Code
from infaas.errors import InfaasError
from infaas.testing import graphs

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
SETTINGS = {
    "INFAAS_POOLS__LOCAL__WORKERS": "2",
    "INFAAS_POOLS__LOCAL__CORES": "1",
    "INFAAS_WORKER__HANG_AFTER_S": "5",
    "INFAAS_WORKER__HANG_FACTOR": "5",
    "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.1",
    "INFAAS_GENERATOR__MAX_BATCH_SIZE": "4",
}


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("e2e"), SETTINGS) as up:
        yield up


def expected(value: int) -> int:
    return 1000 // (value - 600)


def register(system: System, folder: Path, name: str, *flags: str) -> None:
    """Under a task of its own name, so that nobody else's variants can serve it."""
    model, data = folder / f"{name}.onnx", folder / f"{name}.npz"
    model.write_bytes(graphs.deadly().data)
    x = np.arange(601, 661, dtype=np.int64)[:, None]
    np.savez(data, x=x, y=1000 // (x - 600))
    system.infaas(
        "model", "register", model, "--task", f"task-{name}", "--name", name, "--eval", data, *flags, timeout_s=240
    )


def ask(client: Client, handle: str, value: int) -> int:
    answer = client.infer(handle, {"x": np.array([[value]], np.int64)})
    return int(answer.outputs["y"].ravel()[0])


def refusal(client: Client, handle: str, value: int) -> QueryError:
    with pytest.raises(QueryError) as caught:
        ask(client, handle, value)
    return caught.value


@contextmanager
def others_asking(url: str, handle: str, callers: int = 2) -> Iterator[list[str]]:
    """Harmless queries without a pause; what went wrong with any of them is in the list."""
    wrong: list[str] = []
    over = threading.Event()
    asked = threading.Semaphore(0)

    def call(first: int) -> None:
        with Client(url, timeout_s=PATIENCE_S) as client:
            value = first
            while not over.is_set():
                value = 601 + (value - 600) % 60
                try:
                    if (found := ask(client, handle, value)) != expected(value):
                        wrong.append(f"{value}: {found}")
                except InfaasError as error:
                    wrong.append(f"{value}: {error.code.value}: {error.text}")
                asked.release()

    threads = [threading.Thread(target=call, args=(601 + 7 * n,), name=f"other-{n}") for n in range(callers)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(4):
            assert asked.acquire(timeout=PATIENCE_S), "the others get no answers"
        yield wrong
    finally:
        over.set()
        for thread in threads:
            thread.join()


def ask_together(url: str, handle: str, deadly: int) -> tuple[QueryError, list[int]]:
    """The deadly value among harmless ones, all at once, so that they share batches. Returns its error, and the
    values whose answers were right."""
    values = [deadly, 602, 605, 610, 620, 625]
    with Client(url, timeout_s=PATIENCE_S) as client, ThreadPoolExecutor(len(values)) as pool:
        pending = {value: pool.submit(ask, client, handle, value) for value in values}
        right = [value for value in values[1:] if pending[value].result() == expected(value)]
        error = pending[deadly].exception()
    assert isinstance(error, QueryError), error
    return error, right


def assert_ended_two(error: QueryError) -> None:
    """Sent at least twice: a sending that came back before it ran counts as an attempt, and harms nobody."""
    assert error.code is Code.MODEL_FAILED, error.text
    assert (error.served.attempts or 0) >= 2
    assert "for the second time" in error.text


def dead(system: System, model: str) -> list[WorkerInstanceDocument]:
    with system.client() as client:
        return [
            one
            for worker in client.workers()
            for one in worker.instances
            if one.variant.startswith(f"{model}.") and one.state == "FAILED"
        ]


def restarts(system: System) -> int:
    return sum(program.restarts for program in system.record.programs if program.name.startswith("worker-"))


def assert_refused_at_once(system: System, handle: str, value: int, deaths: int) -> None:
    with system.client() as client:
        error = refusal(client, handle, value)
        assert (error.code, error.served.attempts) == (Code.MODEL_FAILED, 0)
        assert "quarantine" in error.text
        assert ask(client, handle, 601) == 1000
    assert len(dead(system, handle.removeprefix("task-"))) <= deaths


def test_a_crash_in_isolated_instances_is_one_500_and_harms_nobody(system: System, tmp_path: Path) -> None:
    register(system, tmp_path, "crash-apart", "--isolation", "process")
    before = restarts(system)
    handle = "task-crash-apart"
    with system.client() as client, others_asking(client.url, handle) as wrong:
        error, right = ask_together(client.url, handle, graphs.CRASHES)
        assert_ended_two(error)
        assert "SIGFPE" in error.text
        assert right == [602, 605, 610, 620, 625]
        assert_refused_at_once(system, handle, graphs.CRASHES, deaths=2)
    assert wrong == []
    assert len(dead(system, "crash-apart")) == 2
    assert restarts(system) == before, "no worker went down"
    variant = dead(system, "crash-apart")[0].variant
    assert "process" in system.infaas("variant", "describe", variant)


def test_a_hang_in_isolated_instances_is_one_500_and_harms_nobody(system: System, tmp_path: Path) -> None:
    register(system, tmp_path, "hang-apart", "--isolation", "process")
    before = restarts(system)
    handle = "task-hang-apart"
    with system.client() as client, others_asking(client.url, handle) as wrong:
        error, right = ask_together(client.url, handle, graphs.HANGS)
        assert_ended_two(error)
        assert "hung for" in error.text
        assert right == [602, 605, 610, 620, 625]
        assert_refused_at_once(system, handle, graphs.HANGS, deaths=2)
    assert wrong == []
    assert restarts(system) == before, "no worker went down"


@pytest.mark.parametrize(
    ("name", "deadly", "cause"),
    [("crash-inside", graphs.CRASHES, "Floating point exception"), ("hang-inside", graphs.HANGS, "hung for")],
)
def test_a_death_inside_a_worker_takes_that_worker_once_and_isolates_the_variant(
    system: System, tmp_path: Path, name: str, deadly: int, cause: str
) -> None:
    register(system, tmp_path, name)
    before = restarts(system)
    handle = f"task-{name}"
    with system.client() as client, others_asking(client.url, handle) as wrong:
        error, right = ask_together(client.url, handle, deadly)
        assert_ended_two(error)
        assert right == [602, 605, 610, 620, 625]
        assert_refused_at_once(system, handle, deadly, deaths=2)
        wait_for(lambda: restarts(system) > before, "the supervisor to start the lost worker again")

        def isolated() -> str | None:
            found = [one for one in client.variants(model=name) if one.isolation == "process"]
            return found[0].isolation_reason if found else None

        reason = wait_for(isolated, "the variant to be isolated")
    assert wrong == []
    assert restarts(system) == before + 1, "one worker went down, once"
    assert cause in reason or "SIGFPE" in reason
