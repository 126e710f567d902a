"""Batches of several controllers in one run: which, and how their answers are told apart again."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from infaas_worker.decide.advance import advance
from infaas_worker.decide.events import (
    BatchArrived,
    Command,
    Deliver,
    Event,
    InstanceTold,
    LoadAsked,
    OwnerLeft,
    Queries,
    Run,
    RunEnded,
)
from infaas_worker.decide.instances import ExecutorDied, Loaded, WorkDone, WorkKind
from infaas_worker.decide.serving import Serving, Work, held_for_others
from infaas_worker.decide.sharing import mates_of, shared
from infaas_worker.executors.base import BatchIn, BatchOut, QueryError, Value, Whole
from msgspec.structs import replace

from infaas.domain.ids import InstanceId, VariantName
from infaas.domain.query import Code
from infaas.domain.tensor import Datatype
from infaas.errors import InfaasError

I1 = InstanceId("i1")
LATENCIES = tuple(0.010 + 0.001 * items for items in range(1, 9))
"""Eight items at most; two runs cost a base of 10 ms twice."""
LINEAR = tuple(0.010 * items for items in range(1, 9))


def work(
    key: int, owner: str, items: int = 1, deadline: float = 10.0, likeness: str | None = "a", instance: InstanceId = I1
) -> Work:
    queries = Queries.of(*((key * 10 + n, 1, deadline) for n in range(items)))
    return Work(key, WorkKind.BATCH, instance, 2, owner, 0.0, deadline, queries, slow_s=0.02, likeness=likeness)


def keys(found: tuple[Work, ...]) -> list[int]:
    return [each.key for each in found]


def test_batches_of_others_for_the_same_instance_join_the_earliest_deadline_first() -> None:
    first = work(1, "c1", 3)
    held = [first, work(2, "c2", 2, 9.0), work(3, "c3", 2, 8.0), work(4, "c4", 2, 7.0)]
    assert keys(mates_of(first, held, LATENCIES, 0.0)) == [4, 3], "eight items are the most"


@pytest.mark.parametrize(
    "other",
    [
        work(2, "c1"),
        work(2, "c2", likeness="b"),
        work(2, "c2", likeness=None),
        work(2, "c2", instance=InstanceId("i2")),
        replace(work(2, "c2"), started_at=0.0),
        work(2, "c2", 8),
        work(2, "c2", 0),
    ],
    ids=["its own", "another signature", "alone", "another instance", "it runs", "too many", "nothing left of it"],
)
def test_what_cannot_share_a_run_does_not(other: Work) -> None:
    first = work(1, "c1")
    assert mates_of(first, [first, other], LATENCIES, 0.0) == ()


def test_nothing_is_shared_where_it_does_not_pay_or_is_not_measured_or_not_wanted() -> None:
    first, other = work(1, "c1"), work(2, "c2")
    assert mates_of(first, [other], LINEAR, 0.0) == ()
    assert mates_of(first, [other], (), 0.0) == ()
    assert mates_of(replace(first, likeness=None), [other], LATENCIES, 0.0) == ()
    assert keys(mates_of(first, [other], LATENCIES, 0.0)) == [2]


def test_nobody_becomes_late_for_others() -> None:
    tight = work(1, "c1", deadline=0.0115)
    assert mates_of(tight, [work(2, "c2")], LATENCIES, 0.0) == (), "two items take 12 ms"
    assert mates_of(work(1, "c1"), [work(2, "c2", deadline=0.0115)], LATENCIES, 0.0) == ()
    assert keys(mates_of(work(1, "c1", deadline=0.0125), [work(2, "c2")], LATENCIES, 0.0)) == [2]


def test_a_shared_run_has_the_threads_of_one_and_every_member_takes_as_long_as_it() -> None:
    run = shared((work(1, "c1"), work(2, "c2", 3)), LATENCIES, 5.0)
    assert [each.threads for each in run] == [2, 0]
    assert {(each.started_at, each.expected_s) for each in run} == {(5.0, LATENCIES[3])}
    assert [each.slow_s for each in run] == [pytest.approx(0.02 * LATENCIES[3] / LATENCIES[0])] * 2


# -- in the worker's machine


class Machine:
    def __init__(self) -> None:
        self.serving = Serving((0, 1), 2**30, 1e9)
        self.now = 0.0
        self.said: list[Command] = []
        self.post(LoadAsked(I1, VariantName("v"), 2, 1, latencies=LATENCIES))
        self.post(InstanceTold(I1, Loaded(0.0, False, 1, 1)))
        self.post(InstanceTold(I1, WorkDone(-1, WorkKind.WARM_UP, 0, 0.0)))
        self.said.clear()

    def post(self, event: Event) -> None:
        self.serving, commands = advance(self.serving, event, self.now)
        self.said += commands

    def arrive(self, key: int, owner: str, *, likeness: str | None = "a", deadline: float = 10.0) -> None:
        queries = Queries.of((key * 10, 1, deadline), (key * 10 + 1, 1, deadline))
        self.post(BatchArrived(key, owner, I1, queries, 0.011, 0.02, likeness))

    def done(self, *run: int) -> None:
        self.post(RunEnded(I1, tuple([WorkDone(key, WorkKind.BATCH, 2, 0.01) for key in run])))

    def runs(self) -> list[Run]:
        return [each for each in self.said if isinstance(each, Run)]


def test_what_waits_of_several_controllers_is_one_run_once_the_instance_is_free() -> None:
    machine = Machine()
    machine.arrive(1, "c1")
    for key, owner in ((2, "c1"), (3, "c2"), (4, "c3")):
        machine.arrive(key, owner)
    assert [(run.key, run.mates) for run in machine.runs()] == [(1, ())]
    assert held_for_others(machine.serving, "c2", I1) == 6
    machine.done(1)
    assert machine.runs()[1:] == [Run(2, WorkKind.BATCH, I1, (20, 21), ((3, (30, 31)), (4, (40, 41))))]
    assert machine.serving.busy_cores == 2
    machine.arrive(5, "c1")
    assert len(machine.runs()) == 2, "the instance is taken"
    machine.said.clear()
    machine.done(2, 3, 4)
    assert [each.key for each in machine.said if isinstance(each, Deliver)] == [2, 3, 4]
    assert [run.key for run in machine.runs()] == [5]


def test_when_answers_of_a_shared_run_are_given_nothing_of_that_run_counts_as_held_any_more() -> None:
    machine = Machine()
    for key, owner in ((1, "c1"), (2, "c1"), (3, "c2"), (4, "c3")):
        machine.arrive(key, owner)
    machine.done(1)
    machine.arrive(5, "c1")
    machine.said.clear()
    machine.post(RunEnded(I1, tuple([WorkDone(key, WorkKind.BATCH, 2, 0.01) for key in (2, 3, 4)])))
    assert [each.key for each in machine.said if isinstance(each, Deliver)] == [2, 3, 4], "of one event"
    assert [held_for_others(machine.serving, owner, I1) for owner in ("c1", "c2", "c3")] == [0, 2, 2]


def test_a_member_whose_controller_left_ends_with_the_run_and_one_that_dies_ends_all() -> None:
    machine = Machine()
    machine.arrive(1, "c1")
    machine.arrive(2, "c1")
    machine.arrive(3, "c2")
    machine.done(1)
    machine.post(OwnerLeft("c2"))
    machine.said.clear()
    machine.post(InstanceTold(I1, ExecutorDied("gone")))
    assert sorted(getattr(each, "key", 0) for each in machine.said)[-2:] == [2, 3]
    assert not machine.serving.work


# -- tensors


def batch(*counts: int, value: float = 1.0) -> BatchIn:
    rows = sum(counts)
    data = np.full((rows, 3), value, np.float32).tobytes()
    return BatchIn.of_whole(("x",), (Datatype.FP32,), Whole(counts, (Value((rows, 3), data),)))


def test_alike_is_what_has_the_same_names_types_shapes_and_outputs() -> None:
    assert batch(1).likeness == batch(2, 3).likeness
    assert replace(batch(1), outputs=("y",)).likeness != batch(1).likeness
    assert BatchIn(("x",), (Datatype.BYTES,), ()).likeness is None


def test_joined_batches_are_all_their_queries_one_after_the_other() -> None:
    joined = BatchIn.joined([batch(1, 2, value=1.0), batch(2, value=7.0)], 3.0)
    assert (joined.items, joined.timeout_s) == ((1, 2, 2), 3.0)
    assert [np.frombuffer(query.inputs[0].data, np.float32)[0] for query in joined.queries] == [1.0, 1.0, 7.0]
    apart = BatchIn.joined([replace(batch(1), whole=None), batch(2)], 3.0)
    assert (apart.whole, list(apart.items)) == (None, [1, 2])
    assert BatchIn.joined([batch(2)], 1.0).whole == batch(2).whole


@given(st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=4), min_size=1, max_size=4), st.booleans())
def test_cut_answers_are_what_each_batch_would_have_had(batches: list[list[int]], is_whole: bool) -> None:
    items = tuple(count for counts in batches for count in counts)
    rows = np.arange(sum(items) * 2, dtype=np.float32).reshape(-1, 2)
    marks = np.cumsum([0, *items])
    each = [(Value((end - begin, 2), rows[begin:end].tobytes()),) for begin, end in pairwise(marks)]
    out = BatchOut(("y",), (Datatype.FP32,), each, 0.5)
    if is_whole:
        out = BatchOut.of_whole(("y",), (Datatype.FP32,), Whole(items, (Value(rows.shape, rows.tobytes()),)), 0.5)
    found = out.cut([len(counts) for counts in batches])
    answers = [[(v.shape, bytes(v.data)) for v in answer] for part in found for answer in part.queries]  # type: ignore[union-attr]
    assert answers == [[(v.shape, bytes(v.data)) for v in answer] for answer in each]
    assert [part.whole is not None for part in found] == [is_whole] * len(batches)
    assert {part.run_s for part in found} == {0.5}


def test_an_answer_that_does_not_fit_the_question_is_nobodys() -> None:
    bad = QueryError(Code.MODEL_FAILED, "no")
    assert [part.queries for part in BatchOut(("y",), (Datatype.FP32,), [bad, bad], 0.1).cut([1, 1])] == [[bad], [bad]]
    with pytest.raises(InfaasError, match="gave 2 answers to 3 queries"):
        BatchOut(("y",), (Datatype.FP32,), [bad, bad], 0.1).cut([1, 2])
    short = Whole((1, 1), (Value((1, 2), bytes(8)),))
    with pytest.raises(InfaasError, match=r"gave shape \[1, 2\] for 2 items"):
        BatchOut.of_whole(("y",), (Datatype.FP32,), short, 0.1).cut([1, 1])
