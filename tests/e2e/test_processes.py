"""A controller of two processes behind one set of ports, as its users have it: who answers is nobody's business."""

from __future__ import annotations

import os
import re
import signal
import threading
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from running_system import PATIENCE_S, SIMPLE_MODEL, SIMPLE_TASK, System, left_of, running, wait_for

from infaas.client import Client, QueryError
from infaas.client_grpc import GrpcClient
from infaas.client_tensors import Array
from infaas.control import ProcessDocument
from infaas.demo import family
from infaas.domain.tensor import Datatype
from infaas.errors import InfaasError
from infaas.testing import graphs

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]
PROCESSES = 2
ONE = np.ones((1, 16), np.int32)
INPUTS = {"INPUT0": ONE, "INPUT1": ONE}
WIDE = "wide"
WIDTH = 20_000
"""Numbers in a tensor that is too large to pass a socket between programs of one machine."""
DECISION = re.compile(r"d-(c-[0-9a-f]+-\d+)-[0-9a-f]+-\d+")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    settings = {
        "INFAAS_GENERATOR__MAX_BATCH_SIZE": "8",
        "INFAAS_GENERATOR__PROFILE_BUDGET_S": "0.05",
        "INFAAS_CONTROLLER__WORKER_LOST_AFTER_S": "60",
    }
    with running(tmp_path_factory.mktemp("e2e"), settings, "--processes", str(PROCESSES)) as system:
        system.register_simple()
        wait_for(lambda: _answered(system), "the first answer")
        yield system


def _answered(system: System, task: str = SIMPLE_TASK, inputs: Mapping[str, Array] = INPUTS) -> bool:
    with system.client() as client:
        try:
            client.infer(task, inputs)
        except InfaasError as error:
            if error.is_retryable:
                return False
            raise
    return True


def maker(decision_id: str | None) -> str:
    """The process that made a decision."""
    found = DECISION.fullmatch(decision_id or "")
    assert found is not None, decision_id
    return found[1]


def processes(system: System) -> tuple[ProcessDocument, ...]:
    with system.client() as client:
        return client.system().processes


def serving(system: System) -> list[ProcessDocument]:
    return [one for one in processes(system) if one.state == "serving" and one.is_ready]


def samples(system: System) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """A scrape, by whichever process takes the connection."""
    text = httpx.get(system.endpoints.metrics_url, trust_env=False).text
    families = text_string_to_metric_families(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def counted(system: System, code: str = "ok") -> int:
    """Queries that ended so, by the metrics."""
    found = samples(system).items()
    return int(
        sum(value for (name, labels), value in found if name == "infaas_requests_total" and ("code", code) in labels)
    )


def gauge(system: System, name: str) -> float:
    return samples(system)[name, frozenset()]


def inferences(system: System) -> int:
    """By Triton's statistics of the task."""
    answer = httpx.get(f"{system.endpoints.url}/v2/models/{SIMPLE_TASK}/stats", trust_env=False)
    (row,) = answer.json()["model_stats"]
    return int(row["inference_stats"]["success"]["count"])


@dataclass
class Caller:
    """One connection that asks without a pause, and remembers who answered and what went wrong."""

    url: str
    over: threading.Event

    def __post_init__(self) -> None:
        self.makers: list[str] = []
        self.errors: list[tuple[str | None, str]] = []
        """Who had answered on this connection before, and what was said."""
        self.thread = threading.Thread(target=self._call, name="caller")
        self.thread.start()

    def _call(self) -> None:
        connected_to: str | None = None
        with Client(self.url, timeout_s=PATIENCE_S) as client:
            while not self.over.is_set():
                try:
                    connected_to = maker(client.infer(SIMPLE_TASK, INPUTS).served.decision_id)
                    self.makers.append(connected_to)
                except InfaasError as error:
                    self.errors.append((connected_to, f"{error.code.value}: {error.text}"))
                    connected_to = None


def test_new_connections_spread_over_both_processes_and_are_counted_together(system: System) -> None:
    before, inferred = counted(system), inferences(system)
    makers: Counter[str] = Counter()
    for _ in range(40):
        with system.client() as client:
            answer = client.infer(SIMPLE_TASK, INPUTS)
            assert (answer.outputs["OUTPUT0"] == 2).all()
            makers["rest", maker(answer.served.decision_id)] += 1  # type: ignore[index]
        with GrpcClient(system.endpoints.grpc) as grpc_client:
            makers["grpc", maker(grpc_client.infer(SIMPLE_TASK, INPUTS).served.decision_id)] += 1  # type: ignore[index]
    assert len(makers) == 2 * PROCESSES, makers
    for _ in range(10):
        assert counted(system) - before == 80, "whoever is scraped answers for both"
        assert inferences(system) - inferred == 80
    assert gauge(system, "infaas_controller_processes") == PROCESSES


def test_large_tensors_go_through_memory_of_each_process_and_are_counted_together(
    system: System, tmp_path: Path
) -> None:
    file = graphs.echo(Datatype.FP32, WIDTH).write(tmp_path)
    system.infaas("model", "register", file, "--task", WIDE, "--name", "wide-echo", "--accuracy", "0.9")
    rows: dict[str, Array] = {"x": np.arange(WIDTH, dtype=np.float32).reshape(1, WIDTH)}
    wait_for(lambda: all(_answered(system, WIDE, rows) for _ in range(8)), "both processes to know the model")
    before, makers = shared(system), set()
    for _ in range(20):
        with system.client() as client:
            answer = client.infer(WIDE, rows)
        assert (answer.outputs["y"] == rows["x"]).all()
        makers.add(maker(answer.served.decision_id))
    assert len(makers) == PROCESSES
    both_ways = {"inputs": before["inputs"] + 20, "outputs": before["outputs"] + 20}
    for _ in range(6):
        assert shared(system) == both_ways, "whoever is scraped answers for both"
        with system.client() as client:
            found = client.worker("local-1").shared_memory
        assert found is not None
        assert (found.is_used, found.reason, found.without_room) == (True, "", 0)
        assert {"inputs": found.inputs, "outputs": found.outputs} == both_ways


def shared(system: System) -> Counter[str]:
    """Batches that went through shared memory, by their direction."""
    found: Counter[str] = Counter()
    for (name, labels), value in samples(system).items():
        if name == "infaas_shared_memory_batches_total":
            found[dict(labels)["direction"]] += int(value)
    return found


def test_a_decision_is_explained_by_whichever_process_is_asked(system: System) -> None:
    known: list[tuple[str, str]] = []
    for number in range(12):
        with system.client() as client:
            request = f"r-{uuid.uuid4()}-{number}"
            served = client.infer(SIMPLE_TASK, INPUTS, request_id=request).served
            known.append((served.decision_id or "", request))
    assert len({maker(decision) for decision, _ in known}) == PROCESSES
    for decision, request in known:
        for key in (decision, request):
            for _ in range(3):
                with system.client() as client:
                    assert client.decision(key).id == decision
    for _ in range(4):
        with system.client() as client:
            assert {decision for decision, _ in known} <= {one.id for one in client.decisions(limit=200)}
    assert known[0][0] in system.infaas("explain", known[0][0])


def test_status_shows_both_processes_of_one_controller(system: System) -> None:
    found = system.json("status")
    shown = found["parts"]["processes"]
    assert [one["number"] for one in shown] == [1, 2]
    assert len({one["pid"] for one in shown}) == PROCESSES
    assert sum(one["is_leader"] for one in shown) == 1
    master = psutil.Process(system.program("controller").pid)
    assert {one["pid"] for one in shown} <= {child.pid for child in master.children()}
    assert re.search(r"process 2 serving(, leads)?: pid \d+, [\d.]+ MiB", system.infaas("status"))


def test_the_control_plane_works_whichever_process_takes_the_call(system: System) -> None:
    """The same upload under one key again and again, each time on a new connection, is one registration."""
    key, seen = str(uuid.uuid4()), set()
    for _ in range(8):
        with (
            Client(system.endpoints.url, timeout_s=PATIENCE_S) as client,
            family.path(family.SIMPLE_FILE).open("rb") as file,
        ):
            answer = client._http.post(
                "/v1/models",
                files={"file": ("simple.onnx", file)},
                data={"task": "sums", "name": "again", "accuracy": "0.9"},
                headers={"idempotency-key": key},
            )
        assert answer.status_code == 202, answer.text
        seen.add((answer.json()["model"], answer.json()["version"]))
    assert seen == {("again", 1)}
    wait_for(lambda: _version_state(system, "again") == "READY", "the build")
    for _ in range(6):
        for verb, is_ready in (("unload", False), ("load", True)):
            url = f"{system.endpoints.url}/v2/repository/models/{SIMPLE_MODEL}/{verb}"
            assert httpx.post(url, json={}, timeout=PATIENCE_S, trust_env=False).status_code == 200
            wait_for(lambda want=is_ready: _is_model_ready(system) is want, f"every process to see the {verb}")  # type: ignore[misc]
    with system.client() as client:
        client.unregister("again")
    for _ in range(4):
        with system.client() as client:
            assert client.model("again").current is None


def _version_state(system: System, model: str) -> str:
    with system.client() as client:
        return client.version(model, 1).state


def _is_model_ready(system: System) -> bool | None:
    """None: the processes do not agree yet."""
    url = f"{system.endpoints.url}/v2/models/{SIMPLE_MODEL}/ready"
    seen = {httpx.get(url, trust_env=False).status_code == 200 for _ in range(8)}
    return seen.pop() if len(seen) == 1 else None


def test_a_killed_process_takes_its_own_open_queries_along_and_nothing_else(system: System) -> None:
    wait_for(lambda: len(serving(system)) == PROCESSES, "both processes to serve")
    before = counted(system)
    over = threading.Event()
    callers = [Caller(system.endpoints.url, over) for _ in range(12)]
    try:
        wait_for(lambda: all(len(caller.makers) > 20 for caller in callers), "traffic")
        assert len({caller.makers[-1] for caller in callers}) == PROCESSES
        (victim,) = (one for one in processes(system) if one.number == 1)

        os.kill(victim.pid, signal.SIGKILL)

        wait_for(lambda: len([one for one in serving(system) if one.pid != victim.pid]) == PROCESSES, "it to be back")
        so_far = [len(caller.makers) for caller in callers]
        wait_for(
            lambda: all(len(caller.makers) > had + 20 for caller, had in zip(callers, so_far, strict=True)),
            "everybody to be answered again",
        )
    finally:
        over.set()
        for caller in callers:
            caller.thread.join()

    failed = [error for caller in callers for error in caller.errors]
    assert {who for who, _ in failed} <= {victim.controller, None}, failed
    for caller in callers:
        assert sum(who is not None for who, _ in caller.errors) <= 1, "one open query at most for each connection"
        # Who comes again before the kernel has closed the dead process's listener is reset there, unheard.
        unheard = [said for who, said in caller.errors if who is None]
        assert len(unheard) <= 1, unheard
        assert all("Connection reset by peer" in said for said in unheard), unheard
    answered = sum(len(caller.makers) for caller in callers)
    wait_for(lambda: gauge(system, "infaas_in_flight") == 0, "nothing to be in flight")
    for _ in range(6):
        assert answered <= counted(system) - before <= answered + len(failed), "nothing that was counted is forgotten"
    (back,) = (one for one in processes(system) if one.number == 1)
    assert (back.controller, back.restarts) == (victim.controller, 1)
    assert samples(system)["infaas_controller_process_starts_total", frozenset()] == PROCESSES + 1
    assert system.program("controller").restarts == 0
    assert "a process of the controller ended" in (system.folder / "logs" / "controller.log").read_text()
    # Who leads now may have been killed; somebody does again.
    wait_for(lambda: sum(one.is_leader for one in processes(system)) == 1, "a leader")


def test_a_process_that_is_told_to_end_finishes_what_it_has_and_leaves_who_comes_to_the_other(system: System) -> None:
    wait_for(lambda: len(serving(system)) == PROCESSES, "both processes to serve")
    count, outcomes = 24, []

    def ask() -> None:
        with Client(system.endpoints.url, timeout_s=PATIENCE_S) as client:
            try:
                outcomes.append(maker(client.infer(SIMPLE_TASK, INPUTS).served.decision_id))
            except QueryError as error:
                outcomes.append(f"{error.code.value}: {error.text}")

    worker = psutil.Process(system.program("worker-local-1").pid)
    (ending,) = (one for one in processes(system) if one.number == 1)
    worker.suspend()
    try:
        callers = [threading.Thread(target=ask, name="caller") for _ in range(count)]
        for caller in callers:
            caller.start()
        wait_for(lambda: gauge(system, "infaas_in_flight") == count, "all queries to be open")
        os.kill(ending.pid, signal.SIGTERM)
        wait_for(lambda: [one.pid for one in processes(system) if one.state == "draining"] == [ending.pid], "its drain")
        ready = f"{system.endpoints.url}/v2/health/ready"
        assert [httpx.get(ready, trust_env=False).status_code for _ in range(count)] == [200] * count
        assert psutil.pid_exists(ending.pid), "it has queries to finish"
    finally:
        worker.resume()
    for caller in callers:
        caller.join()
    assert {*outcomes} == {one.controller for one in processes(system)}, outcomes
    wait_for(lambda: len([one for one in serving(system) if one.pid != ending.pid]) == PROCESSES, "it to be back")


def test_when_it_is_asked_to_stop_what_is_open_in_both_processes_is_answered(system: System) -> None:
    wait_for(lambda: len(serving(system)) == PROCESSES, "both processes to serve")
    url, count = system.endpoints.url, 40
    outcomes: list[str] = []

    def ask() -> None:
        with Client(url, timeout_s=PATIENCE_S) as client:
            try:
                outcomes.append(maker(client.infer(SIMPLE_TASK, INPUTS).served.decision_id))
            except QueryError as error:
                outcomes.append(f"{error.code.value}: {error.text}")

    worker, master = (
        psutil.Process(system.program("worker-local-1").pid),
        psutil.Process(system.program("controller").pid),
    )
    children = master.children()
    worker.suspend()
    try:
        callers = [threading.Thread(target=ask, name="caller") for _ in range(count)]
        for caller in callers:
            caller.start()
        wait_for(lambda: gauge(system, "infaas_in_flight") == count, "all queries to be open")
        before = system.program("controller")
        master.terminate()
        wait_for(lambda: not (system.folder / "run" / "controller.json").exists(), "the controller to withdraw")
    finally:
        worker.resume()
    for caller in callers:
        caller.join()
    assert len(outcomes) == count
    assert len(set(outcomes)) == PROCESSES, outcomes
    assert all(outcome.startswith("c-") for outcome in outcomes), outcomes
    wait_for(lambda: not left_of(children), "the processes to end with their master")
    system.wait_restarted(before)
    wait_for(lambda: len(serving(system)) == PROCESSES, "the next ones to serve")
