"""The view's look-ups and sharing, tensors, and the journey of values through JSON."""

from __future__ import annotations

import pytest

from infaas.domain.cluster import ClusterView, WorkerRecord
from infaas.domain.ids import WorkerId
from infaas.domain.query import Level, Priority
from infaas.domain.task import Model, Task
from infaas.domain.tensor import Datatype, Tensor, TensorSpec, signature
from infaas.domain.variant import Variant
from infaas.errors import InvalidError
from infaas.rpc.codec import decode, encode, from_plain, to_plain
from infaas.testing.builders import a_model, a_query, a_task, a_tensor, a_variant, a_view, a_worker, an_instance
from infaas.testing.clock import ManualClock


def test_a_handle_is_found_at_its_level() -> None:
    view = a_view(variants=[a_variant("v1", model="m1", task="digits")])
    assert [view.level_of(name) for name in ("digits", "m1", "v1", "x")] == [
        Level.TASK, Level.MODEL, Level.VARIANT, None,
    ]  # fmt: skip


def test_a_workers_change_shares_everything_else() -> None:
    view = a_view(variants=[a_variant()], workers=[a_worker("w1"), a_worker("w2")])
    more = view.with_worker(a_worker("w1", pid=7))
    assert more.workers[WorkerId("w1")].pid == 7
    assert more.workers[WorkerId("w2")] is view.workers[WorkerId("w2")]
    assert (more.variants is view.variants, more.tasks is view.tasks, more.models is view.models) == (True,) * 3
    less = more.without_worker(WorkerId("w1"))
    assert set(less.workers) == {"w2"}
    assert view.version < more.version < less.version
    assert view.workers[WorkerId("w1")].pid != 7, "the old view is as it was"


@pytest.mark.parametrize(
    "value",
    [
        a_task(labels={"a": "b"}),
        a_model(current=None),
        a_variant(),
        a_variant(has_profile=False, fixed_batch=1, max_batch=1),
        a_worker(instances=[an_instance("i1"), an_instance("i2")]),
        a_view(variants=[a_variant()], workers=[a_worker(instances=[an_instance()])]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_comes_back_from_json_as_it_went(value: Task | Model | Variant | WorkerRecord | ClusterView) -> None:
    assert decode(encode(value), type(value)) == value
    assert from_plain(to_plain(value), type(value)) == value


def test_what_does_not_fit_is_told_with_its_field() -> None:
    with pytest.raises(InvalidError, match=r"cores"):
        decode(encode({**to_plain(a_worker()), "cores": "two"}), WorkerRecord)
    with pytest.raises(InvalidError, match=r"not a Task"):
        decode(b"{", Task)


def test_a_record_of_a_newer_program_is_still_read() -> None:
    newer = {**to_plain(a_worker()), "a_field_of_tomorrow": 1}
    assert decode(encode(newer), WorkerRecord) == a_worker()


def test_values_are_frozen() -> None:
    for value in (a_task(), a_variant(), a_worker(), a_query(), a_view()):
        with pytest.raises((AttributeError, TypeError)):
            value.name = "x"  # type: ignore[misc, union-attr]


def test_a_specification_admits_fitting_shapes_only() -> None:
    spec = TensorSpec("image", Datatype.FP32, (-1, 8, -1))
    assert [spec.admits(shape) for shape in ((1, 8, 3), (0, 8, 1), (4, 7, 3), (4, 8), (4, 8, 1, 1), ())] == [
        True, True, False, False, False, False,
    ]  # fmt: skip


def test_queries_share_a_batch_when_they_differ_only_in_items_and_order() -> None:
    def tensor(name: str, *shape: int) -> Tensor:
        return Tensor(name, Datatype.FP32, shape, b"")

    assert signature((tensor("a", 1, 3), tensor("b", 1))) == signature((tensor("b", 7), tensor("a", 7, 3)))
    assert signature((tensor("a", 1, 3),)) != signature((tensor("a", 1, 4),))


def test_critical_goes_first() -> None:
    assert sorted(Priority, key=lambda priority: priority.rank) == [
        Priority.CRITICAL, Priority.STANDARD, Priority.SHEDDABLE,
    ]  # fmt: skip


def test_every_datatype_has_its_size() -> None:
    assert {datatype: datatype.itemsize for datatype in Datatype}[Datatype.FP16] == 2
    assert [datatype for datatype in Datatype if datatype.itemsize == 0] == [Datatype.BYTES]


def test_built_queries_are_whole() -> None:
    query = a_query(items=3, latency_ms=50, at=10.0)
    assert query.deadline == pytest.approx(10.05)
    assert query.inputs[0].shape == (3, 64)
    assert len(query.inputs[0].data) == 3 * 64 * 4
    assert a_query(at=0.0).deadline == 30.0
    assert len(a_tensor(TensorSpec("t", Datatype.BYTES, (-1, 2)), items=2).data) == 16


def test_a_manual_clock_moves_only_forward() -> None:
    clock = ManualClock(now_s=5.0, wall_s=100.0)
    assert clock.advance(2.5) == clock.now() == 7.5
    assert clock.wall() == 102.5
    with pytest.raises(ValueError, match="back"):
        clock.advance(-1)


def test_a_worker_of_strange_instances_is_not_built() -> None:
    with pytest.raises(ValueError, match="i9"):
        a_worker("w1", instances=[an_instance("i9", worker="w2")])
