"""Where a variant goes when somebody asks for it, how long that took, and what a worker's word on a batch becomes."""

from __future__ import annotations

import pytest
from infaas_controller.answers import batch_result
from infaas_controller.ledger import Ledger
from infaas_controller.loading import LoadOrders, loaded_on, place_to_load

from infaas.domain.cluster import ClusterView, WorkerRecord
from infaas.domain.ids import InstanceId, VariantName, WorkerId
from infaas.domain.lifecycle import InstanceState, WorkerState
from infaas.domain.tensor import Datatype, Tensor
from infaas.errors import NotFoundError, UnavailableError
from infaas.rpc.hop.frames import FrameError
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


def a_done(**given: object) -> pb.BatchDone:
    """Of two queries with two items each, and outputs `a` (FP32 [items, 2]) and `b` (INT64 [items])."""
    outputs = [pb.Column(name="a", datatype="FP32", tail=[2]), pb.Column(name="b", datatype="INT64")]
    said = {"queries": [1, 2], "items": [2, 2], "outputs": outputs, **given}
    return pb.BatchDone(id=7, was_running=True, staged_s=0.5, run_s=0.25, **said)  # type: ignore[arg-type]


A, B = bytes(range(32)), bytes(range(100, 132))


def test_answers_and_failures_of_a_batch_are_kept_apart_and_tensors_are_views_made_when_wanted() -> None:
    payload = memoryview(A + B)
    result = batch_result(a_done(failures=[pb.QueryFailure(id=3, error_code="x", error="y")]), payload)
    assert (result.error, result.was_running, result.staged_s, result.run_s) == ("", True, 0.5, 0.25)
    assert result.failed == {3: ("x", "y")}
    assert list(result.outputs or {}) == [1, 2]
    for number, half in ((1, slice(0, 16)), (2, slice(16, 32))):
        a, b = result.tensors(number)
        assert a == Tensor("a", Datatype.FP32, (2, 2), A[half])
        assert b == Tensor("b", Datatype.INT64, (2,), B[half])
        assert isinstance(a.data, memoryview)
        assert a.data.obj is payload.obj


def test_a_batch_that_failed_as_a_whole_has_no_answers() -> None:
    result = batch_result(pb.BatchDone(id=7, error_code="model-failed", error="it raised"), memoryview(b""))
    assert (result.error, result.reason, result.outputs, result.failed) == ("model-failed", "it raised", {}, {})


@pytest.mark.parametrize(
    ("given", "payload", "fact"),
    [
        ({}, A + B[:-1], "2 tensors of 64 bytes in all come with 63 bytes"),
        ({}, A + B + b"x", "2 tensors of 64 bytes in all come with 65 bytes"),
        ({"items": [2]}, A + B, "2 answers and 1 numbers of items"),
        ({"items": [4, 0]}, A + B, "a query holds no items"),
        ({"items": [2**32 - 1, 2**32 - 1]}, A + B, "come with 64 bytes"),
        ({"sizes": [1]}, A + B, "1 sizes of BYTES come with 0 such columns"),
        ({"outputs": [pb.Column(name="a", datatype="BYTES")]}, A + B, "2 queries come with 0 sizes of BYTES"),
        ({"outputs": [pb.Column(name="a", datatype="BYTES")], "sizes": [9, 9]}, A + B, "of 18 bytes in all come"),
        ({"outputs": [pb.Column(name="a", datatype="INT8", tail=[-4, -4])]}, A + B, "cannot have the dimensions"),
        ({"outputs": [pb.Column(name="a", datatype="INT8", tail=[2**62] * 65)]}, b"", "cannot have the dimensions"),
        ({"outputs": [pb.Column(name="a", datatype="INT8", tail=[2**62] * 64)]}, b"", "come with 0 bytes"),
        ({"outputs": [pb.Column(name="a", datatype="INT8", shapes=[pb.Shape(dims=[64])])]}, A + B, "1 shapes for 2"),
    ],
)  # fmt: skip
def test_an_answer_that_does_not_fit_its_bytes_breaks_the_protocol(
    given: dict[str, object], payload: bytes, fact: str
) -> None:
    with pytest.raises(FrameError, match=fact):
        batch_result(a_done(**given), memoryview(payload))


def test_a_datatype_that_is_not_known_is_found_out_by_whoever_wants_the_tensors_and_by_nobody_else() -> None:
    outputs = [pb.Column(name="a", datatype="FP32", tail=[2]), pb.Column(name="b", datatype="FP8")]
    failures = [pb.QueryFailure(id=3, error_code="cancelled")]
    result = batch_result(a_done(outputs=outputs, failures=failures), memoryview(A + B))
    assert (list(result.outputs or {}), result.failed) == ([1, 2], {3: ("cancelled", "")})
    with pytest.raises(ValueError, match="output 'b' has datatype 'FP8'"):
        result.tensors(1)


def test_a_ticket_without_a_place_among_the_answers_has_no_tensors() -> None:
    result = batch_result(a_done(), memoryview(A + B))
    for number in (0, 3):
        with pytest.raises(TypeError, match=f"ticket {number} has no place"):
            result.tensors(number)
    with pytest.raises(TypeError, match="no place"):
        batch_result(pb.BatchDone(id=7, error_code="model-failed"), memoryview(b"")).tensors(1)
