"""A system whose worker lives in the controller's process (`worker.inline`), as its users have it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from running_system import (
    TASK,
    Scans,
    System,
    Traffic,
    ask_until_answered,
    member,
    running,
    wait_for,
)

from infaas.client import Client
from infaas.demo import family
from infaas.domain.query import Code
from infaas.errors import InfaasError
from infaas.testing import graphs

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
SETTINGS = {
    "INFAAS_WORKER__INLINE": "true",
    "INFAAS_WORKER__HANG_AFTER_S": "5",
    "INFAAS_WORKER__HANG_FACTOR": "5",
    "INFAAS_CONTROLLER__DRAIN_TIMEOUT_S": "5",
    "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.1",
    "INFAAS_GENERATOR__MAX_BATCH_SIZE": "4",
}
LATER = {"draining", "unavailable", "no-worker", "loading"}
"""What a caller is told who may come again."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with running(tmp_path_factory.mktemp("e2e"), SETTINGS) as up:
        up.register(member("digits-mlp"))
        yield up


def test_no_program_but_the_controller_serves_and_both_protocols_answer(system: System, scans: Scans) -> None:
    assert [program.name for program in system.record.programs] == ["redis", "controller", "generator"]
    with system.client() as client:
        ask_until_answered(client, TASK, scans)
    for protocol in ("rest", "grpc"):
        answer = system.json("infer", TASK, family.path(family.EVAL_FILE), "--protocol", protocol)
        assert answer["served"]["worker"] == "local-1", protocol
    with system.client() as client:
        (worker,) = client.workers()
        assert (worker.id, worker.state, worker.is_connected) == ("local-1", "READY", True)
        asked = [client.infer(TASK, scans.rows(at, 3)) for at in range(0, 90, 3)]
        classes = np.concatenate([answer.outputs[family.OUTPUT].argmax(axis=1) for answer in asked])
        assert (classes == scans.labels[:90]).mean() > 0.9, "each answer is of its own scan"


def test_a_drain_refuses_queries_until_it_is_taken_back(system: System, scans: Scans) -> None:
    with system.client() as client:
        ask_until_answered(client, TASK, scans)
        system.infaas("worker", "drain", "local-1")
        wait_for(lambda: client.worker("local-1").state == "DRAINING", "the worker to drain")
        with pytest.raises(InfaasError) as refused:
            client.infer(TASK, scans.rows(0))
        assert refused.value.is_retryable
        system.infaas("worker", "resume", "local-1")
        ask_until_answered(client, TASK, scans)


def test_a_stop_under_load_answers_what_it_took_and_the_next_start_serves_again(tmp_path: Path, scans: Scans) -> None:
    system = System(tmp_path / "s", SETTINGS)
    try:
        system.up()
        system.register(member("digits-mlp"))
        with system.client() as client, Traffic(client.url, TASK, scans, callers=4).running() as traffic:
            ask_until_answered(client, TASK, scans)
            traffic.wait_for_more(50)
            system.down()
        assert {(one.error or "").split(":")[0] for one in traffic.failed} <= LATER
        system.up()
        with system.client() as client:
            ask_until_answered(client, TASK, scans)
        system.down()
    finally:
        system.close()


def test_a_killed_controller_comes_back_with_its_worker(system: System, scans: Scans) -> None:
    url = system.endpoints.url
    before = system.kill("controller")
    system.wait_restarted(before)
    wait_for(lambda: system.endpoints.url != url, "the new controller to listen")
    with system.client() as client:
        wait_for(client.is_ready, "the new controller to be ready")
        wait_for(lambda: any(one.is_connected for one in client.workers()), "the worker to be connected")
        ask_until_answered(client, TASK, scans)


@pytest.mark.parametrize(
    ("name", "deadly", "cause"),
    [("crash", graphs.CRASHES, "Floating point exception"), ("hang", graphs.HANGS, "hung for")],
)
def test_a_model_that_dies_takes_the_controller_once_and_is_isolated_from_then_on(
    system: System, tmp_path: Path, name: str, deadly: int, cause: str
) -> None:
    model, data = tmp_path / f"{name}.onnx", tmp_path / f"{name}.npz"
    model.write_bytes(graphs.deadly().data)
    x = np.arange(601, 661, dtype=np.int64)[:, None]
    np.savez(data, x=x, y=1000 // (x - 600))
    words = ("--task", name, "--name", f"{name}-net", "--eval", data)
    system.infaas("model", "register", model, *words, timeout_s=240)
    before = system.program("controller").restarts
    with system.client() as client, pytest.raises(InfaasError):
        ask(client, name, deadly)
    wait_for(lambda: system.program("controller").restarts > before, "the controller to be started again")

    def isolated() -> str | None:
        with system.client() as client:
            try:
                found = [one for one in client.variants(model=f"{name}-net") if one.isolation == "process"]
            except InfaasError:
                return None  # it is only just coming back
            return found[0].isolation_reason if found else None

    reason = wait_for(isolated, "the variant to be isolated")
    assert cause in reason or "SIGFPE" in reason
    with system.client() as client:
        wait_for(lambda: answered(client, name, 601) == 1000, "harmless input to be answered again")
        with pytest.raises(InfaasError) as caught:
            ask(client, name, deadly)
        assert caught.value.code is Code.MODEL_FAILED
        wait_for(lambda: answered(client, name, 602) == 500, "harmless input to be answered still")
    assert system.program("controller").restarts == before + 1, "it went down once"


def ask(client: Client, handle: str, value: int) -> int:
    answer = client.infer(handle, {"x": np.array([[value]], np.int64)})
    return int(answer.outputs["y"].ravel()[0])


def answered(client: Client, handle: str, value: int) -> int | None:
    """None: the caller is told to come again."""
    try:
        return ask(client, handle, value)
    except InfaasError as error:
        if error.is_retryable:
            return None
        raise
