"""A real Triton server through the connection and the executor: what it has, what it loses, and how it comes back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from infaas_controller.register.attachment import AttachOptions, plan_attachment
from infaas_worker.executors.base import BatchIn, QueryIn, Value
from infaas_worker.executors.triton import TritonExecutor

from infaas.domain.query import Code
from infaas.domain.tensor import Datatype
from infaas.domain.variant import Runtime
from infaas.errors import InfaasError, InvalidError, ModelError, NotFoundError, UnavailableError
from infaas.testing import graphs
from infaas.testing.triton import TritonProcess, add_model, why_no_triton
from infaas.triton.reference import Reference, write_reference
from infaas.triton.server import READY, TritonServer

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(why_no_triton() is not None, reason=why_no_triton() or ""),
]
WAIT_S = 60.0
SEQUENCE = "sequence_batching { max_sequence_idle_microseconds: 5000000 }"
DECOUPLED = "model_transaction_policy { decoupled: true }"


def put(process: TritonProcess, name: str, graph: graphs.Graph, **facts) -> None:
    add_model(process.repository, name, graph.data, graph.inputs, graph.outputs, **facts)


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonProcess]:
    process = TritonProcess(tmp_path_factory.mktemp("triton"))
    put(process, "double", graphs.double(), renames={"INPUT0": "x"}, instances=2)
    put(process, "slow", graphs.slow(2000), instances=1)
    put(process, "endless", graphs.slow(50_000), instances=1)
    put(process, "sequence", graphs.echo(Datatype.FP32), more=SEQUENCE)
    put(process, "decoupled", graphs.echo(Datatype.FP32), more=DECOUPLED)
    put(process, "halves", graphs.echo(Datatype.FP16, columns=4))
    (process.repository / "broken" / "1").mkdir(parents=True)
    (process.repository / "broken" / "config.pbtxt").write_text('name: "broken"\nbackend: "absent"\n')
    process.start()
    yield process
    process.stop()


@pytest.fixture
def server(process: TritonProcess) -> Iterator[TritonServer]:
    server = TritonServer(process.url)
    yield server
    server.close()


def attached(server: TritonServer, model: str, **change) -> Reference:
    """As the control plane attaches it to a new task."""
    is_ours = server.ensure_loaded(model)
    try:
        facts = server.facts(model)
    finally:
        if is_ours:
            server.unload(model)
    plan = plan_attachment(facts, AttachOptions(server.url, model, "", "t", name="m", **change), None, 8)
    assert plan.reference is not None, plan.problems
    return plan.reference


def opened(reference: Reference, graph: graphs.Graph, folder: Path, *, by: TritonExecutor | None = None, **facts):
    path = folder / f"{reference.model}.json"
    write_reference(reference, path)
    return (by or TritonExecutor()).load(graph.variant(runtime=Runtime.TRITON, max_batch=8, **facts), path)


def query(value: float, timeout_s: float | None = None) -> BatchIn:
    data = np.full((1, 4), value, np.float32).tobytes()
    return BatchIn(("x",), (Datatype.FP32,), (QueryIn(1, (Value((1, 4), data),)),), timeout_s=timeout_s)


def test_models_are_loaded_on_request_and_stay_for_others_who_began_to_use_them(server, tmp_path):
    states = {one.name: one.state for one in server.index()}
    assert {"double", "slow", "sequence", "decoupled", "halves", "broken"} <= states.keys()
    reference = attached(server, "double", mapping={"INPUT0": "x"})
    assert not server.is_model_ready("double", "")
    model = opened(reference, graphs.double(), tmp_path)
    assert server.is_model_ready("double", "1")
    assert model.max_in_flight == 2
    other = opened(reference, graphs.double(), tmp_path, by=TritonExecutor(server.url))  # another worker
    model.close()
    assert other.submit(query(1.0)).result(WAIT_S).run_s > 0
    other.close()
    assert server.is_model_ready("double", "1")
    server.unload("double")


def is_there(server: TritonServer, model: str) -> bool:
    return READY in [one.state for one in server.index() if one.name == model]


def test_a_worker_unloads_from_a_server_of_its_own_what_it_had_it_load(server, tmp_path):
    reference = attached(server, "double", mapping={"INPUT0": "x"})
    own = TritonExecutor(server.url, is_private=True)
    first = opened(reference, graphs.double(), tmp_path, by=own)
    second = opened(reference, graphs.double(), tmp_path, by=own)
    first.close()
    assert second.submit(query(1.0)).result(WAIT_S).run_s > 0
    second.close()
    assert not is_there(server, "double")
    assert server.ensure_loaded("double")
    opened(reference, graphs.double(), tmp_path, by=own).close()
    assert is_there(server, "double")
    server.unload("double")


def test_an_instance_that_opens_while_the_last_other_one_closes_finds_its_model(server, tmp_path):
    reference = attached(server, "double", mapping={"INPUT0": "x"})
    own = TritonExecutor(server.url, is_private=True)
    path = tmp_path / "reference.json"
    write_reference(reference, path)
    variant = graphs.double().variant(runtime=Runtime.TRITON, max_batch=8)

    def open_ask_close() -> float:
        model = own.load(variant, path)
        try:
            return model.submit(query(1.0)).result(WAIT_S).run_s
        finally:
            model.close()

    with ThreadPoolExecutor(3) as threads:
        runs = [threads.submit(open_ask_close) for _ in range(30)]
        assert all(run.result() > 0 for run in runs)
    assert not is_there(server, "double")


def test_names_are_mapped_both_ways(server, tmp_path):
    reference = attached(server, "double", mapping={"INPUT0": "x"})
    assert [(one.ours, one.theirs) for one in reference.inputs] == [("x", "INPUT0")]
    model = opened(reference, graphs.double(), tmp_path)
    try:
        out = model.submit(query(3.0)).result(WAIT_S)
    finally:
        model.close()
    (values,) = out.queries
    assert np.frombuffer(values[0].data, np.float32).tolist() == [6.0] * 4


def test_a_server_beside_the_worker_runs_what_was_attached_elsewhere(server, tmp_path):
    there = attached(server, "double", mapping={"INPUT0": "x"})
    path = tmp_path / "reference.json"
    write_reference(replace(there, url="grpc://127.0.0.1:1"), path)
    variant = graphs.double().variant(runtime=Runtime.TRITON, max_batch=8)
    model = TritonExecutor(server.url).load(variant, path)
    try:
        assert model.submit(query(1.0)).result(WAIT_S).run_s > 0
    finally:
        model.close()


def test_what_keeps_state_or_streams_is_refused_with_the_reason(server):
    for model, fact in (("sequence", "sequence_batching"), ("decoupled", "decoupled")):
        assert server.ensure_loaded(model)
        plan = plan_attachment(server.facts(model), AttachOptions(server.url, model, "", "t", name="m"), None, 8)
        server.unload(model)
        assert plan.reference is None
        assert any(fact in problem for problem in plan.problems)


def test_what_is_not_there_or_cannot_be_loaded_is_told_apart(server):
    with pytest.raises(NotFoundError, match="no model 'absent'"):
        server.ensure_loaded("absent")
    with pytest.raises(ModelError, match="cannot load 'broken'"):
        server.ensure_loaded("broken")
    with pytest.raises(NotFoundError, match="is not loaded"):
        server.facts("slow")


def test_a_deadline_ends_the_request_and_a_later_one_is_answered(server, tmp_path):
    model = opened(attached(server, "slow"), graphs.slow(1), tmp_path, has_profile=False)
    try:
        with pytest.raises(InfaasError) as caught:
            model.submit(query(1.0, timeout_s=0.05)).result(WAIT_S)
        assert caught.value.code is Code.DEADLINE_PASSED
        assert model.submit(query(2.0, timeout_s=WAIT_S)).result(WAIT_S).run_s > 0
    finally:
        model.close()


def test_a_cancelled_batch_frees_its_place(server, tmp_path):
    model = opened(attached(server, "slow"), graphs.slow(1), tmp_path, has_profile=False)
    try:
        first = model.submit(query(1.0))
        assert first.cancel()
        assert model.submit(query(2.0)).result(WAIT_S).run_s > 0
    finally:
        model.close()


def test_a_model_that_changed_on_the_server_is_not_run(server, tmp_path):
    reference = attached(server, "double", mapping={"INPUT0": "x"})
    changed = replace(reference, model="halves")
    with pytest.raises(ModelError, match="is not what was attached"):
        opened(changed, graphs.double(), tmp_path)


def test_a_version_that_is_not_there_is_refused(server):
    server.ensure_loaded("double")
    try:
        with pytest.raises(InvalidError, match="no version '7'; loaded are 1"):
            server.facts("double", "7")
    finally:
        server.unload("double")


def test_a_server_that_loads_nothing_on_request_says_so(tmp_path):
    process = TritonProcess(tmp_path, mode="none")
    put(process, "double", graphs.double())
    process.start()
    server = TritonServer(process.url)
    try:
        put(process, "later", graphs.double())
        assert not server.ensure_loaded("double")
        with pytest.raises((UnavailableError, NotFoundError), match="later"):
            server.ensure_loaded("later")
        model = opened(attached(server, "double"), graphs.double(), tmp_path)
        model.close()
        assert server.is_model_ready("double", "")
    finally:
        server.close()
        process.stop()


def test_nobody_at_the_address_is_unavailable_within_the_time_given():
    server = TritonServer("grpc://127.0.0.1:1")
    try:
        with pytest.raises(UnavailableError, match="no Triton server answers at grpc"):
            server.require_live(0.3)
    finally:
        server.close()


def test_a_killed_server_ends_the_instance_and_a_new_one_serves_when_it_is_back(tmp_path):
    process = TritonProcess(tmp_path)
    put(process, "double", graphs.double())
    process.start()
    server = TritonServer(process.url)
    executor = TritonExecutor()
    path = tmp_path / "reference.json"
    write_reference(attached(server, "double"), path)
    variant = graphs.double().variant(runtime=Runtime.TRITON, max_batch=8)
    try:
        first = executor.load(variant, path)
        assert first.submit(query(1.0)).result(WAIT_S).run_s > 0
        process.kill()
        with pytest.raises(UnavailableError, match=process.url):
            first.submit(query(1.0)).result(WAIT_S)
        first.close()
        process.start()
        second = executor.load(variant, path)
        assert second.submit(query(1.0)).result(WAIT_S).run_s > 0
        second.close()
    finally:
        server.close()
        process.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("call-")]


def test_a_model_that_hangs_ends_its_instance_before_the_worker_would_take_itself_for_hanging(server, tmp_path):
    model = opened(attached(server, "endless"), graphs.slow(1), tmp_path)
    try:
        with pytest.raises(UnavailableError, match="taken for hanging"):
            model.submit(query(1.0, timeout_s=WAIT_S)).result(WAIT_S)
    finally:
        model.close()
