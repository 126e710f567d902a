"""Where a variant goes when somebody asks for it, how long that took, and what a worker's word on a batch becomes."""

from __future__ import annotations

import pytest
from infaas_controller.answers import Outputs, batch_result
from infaas_controller.ledger import Ledger
from infaas_controller.loading import LoadOrders, loaded_on, place_to_load

from infaas.domain.cluster import ClusterView, WorkerRecord
from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.tensor import Datatype, Tensor
from infaas.errors import NotFoundError, UnavailableError
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.testing.builders import a_variant, a_view, a_worker, an_instance

NOW = 1_000.0
V = a_variant("v", memory_mib=100)
W1, W2 = WorkerId("w1"), WorkerId("w2")


def followed(*workers: WorkerRecord) -> tuple[Ledger, ClusterView]:
    view, ledger = a_view(variants=[V], workers=workers), Ledger()
    ledger.sync(view, NOW)
    return ledger, view


def having(id: str, state: InstanceState = InstanceState.READY) -> WorkerRecord:
    return a_worker(id, instances=[an_instance(f"{id}-v", variant="v", worker=id, state=state)])


@pytest.mark.parametrize("state", [InstanceState.READY, InstanceState.LOADING])
def test_what_is_there_or_on_its_way_is_not_loaded_again(state: InstanceState) -> None:
    ledger, _ = followed(a_worker("w1"), having("w2", state))
    assert loaded_on(ledger, V, None) == W2
    assert loaded_on(ledger, V, W2) == W2
    assert loaded_on(ledger, V, W1) is None


def test_what_drains_is_loaded_anew_and_an_unknown_worker_is_named_with_those_there_are() -> None:
    ledger, _ = followed(having("w1", InstanceState.DRAINING), a_worker("w2"))
    assert loaded_on(ledger, V, None) is None
    with pytest.raises(NotFoundError, match="no worker is called 'w9'; known: w1, w2"):
        loaded_on(ledger, V, WorkerId("w9"))


def test_what_was_told_to_unload_is_loaded_anew() -> None:
    ledger, _ = followed(having("w1"), having("w2"))
    ledger.lanes[InstanceId("w1-v")].is_leaving = True
    assert loaded_on(ledger, V, None) == W2
    assert loaded_on(ledger, V, W1) is None
    ledger.lanes[InstanceId("w2-v")].is_leaving = True
    assert loaded_on(ledger, V, None) is None


def test_the_asked_for_worker_takes_it_else_one_that_can() -> None:
    ledger, _ = followed(a_worker("w1", memory_mib=50), a_worker("w2", memory_mib=500))
    assert place_to_load(ledger, V, None, NOW) == W2
    assert place_to_load(ledger, V, W2, NOW) == W2
    with pytest.raises(UnavailableError, match="worker w1 cannot take v now") as refused:
        place_to_load(ledger, V, W1, NOW)
    assert refused.value.retry_after_s == 1.0


def test_without_a_ready_worker_nothing_can_be_loaded() -> None:
    ledger, _ = followed(a_worker("w1", state=WorkerState.DRAINING))
    for worker in (None, W1):
        with pytest.raises(UnavailableError):
            place_to_load(ledger, V, worker, NOW)


def test_an_order_is_told_once_when_it_is_ready_and_forgotten_when_it_is_gone() -> None:
    ledger, view = followed(a_worker("w1"), having("w2", InstanceState.LOADING))
    orders = LoadOrders()
    orders.sent(InstanceId("w2-v"), VariantName("v"), NOW)
    orders.sent(InstanceId("gone"), VariantName("v"), NOW)
    assert orders.take_loaded(ledger, NOW + 1) == []
    ledger.sync(view.with_worker(having("w2")), NOW + 2)
    assert orders.take_loaded(ledger, NOW + 3) == [("v", 3.0)]
    assert orders.take_loaded(ledger, NOW + 4) == []


def a_done(*queries: pb.QueryOutputs) -> pb.BatchDone:
    return pb.BatchDone(
        id=7, was_running=True, staged_s=0.5, run_s=0.25,
        output_names=["a", "b"], output_datatypes=["FP32", "INT64"], queries=queries,
    )  # fmt: skip


def test_answers_and_failures_of_a_batch_are_kept_apart_and_tensors_read_when_wanted() -> None:
    values = [pb.TensorValue(shape=[1, 2], size=8), pb.TensorValue(shape=[1], size=8)]
    result = batch_result(
        a_done(pb.QueryOutputs(id=2, error_code="x", error="y"), pb.QueryOutputs(id=1, outputs=values)),
        [memoryview(bytes(8)), memoryview(bytes(range(8)))],
    )
    assert (result.error, result.was_running, result.staged_s, result.run_s) == ("", True, 0.5, 0.25)
    assert result.failed == {2: ("x", "y")}
    assert result.outputs is not None
    (found,) = result.outputs.values()
    assert isinstance(found, Outputs)
    assert found.tensors() == (
        Tensor("a", Datatype.FP32, (1, 2), bytes(8)),
        Tensor("b", Datatype.INT64, (1,), bytes(range(8))),
    )


@pytest.mark.parametrize("values", [1, 3])
def test_an_answer_with_too_few_or_too_many_tensors_cannot_be_read(values: int) -> None:
    outputs = [pb.TensorValue(shape=[1], size=8)] * values
    result = batch_result(a_done(pb.QueryOutputs(id=1, outputs=outputs)), [memoryview(bytes(8))] * values)
    found = (result.outputs or {})[1]
    assert isinstance(found, Outputs)
    with pytest.raises(ValueError, match="zip"):
        found.tensors()
