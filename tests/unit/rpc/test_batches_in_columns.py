"""A batch from a controller's tickets to a worker's values and back: every query gets what is its own, whatever befalls
its neighbours, and bytes that are no batch are an error in words."""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.answers import batch_result, given_result
from infaas_controller.commands import BatchResult
from infaas_controller.queues import Ticket
from infaas_controller.wire import encode_batch, given_batch
from infaas_worker.api import handover, messages
from infaas_worker.batches import Held, Owner, Ran
from infaas_worker.decide.events import Queries
from infaas_worker.executors.base import BatchIn, BatchOut, QueryError, Value, Whole

from infaas.domain.ids import InstanceId
from infaas.domain.query import HARD_LIMIT_S, Code, TraceContext
from infaas.domain.tensor import Datatype, Tensor
from infaas.errors import InvalidError, ModelError
from infaas.rpc.hop.columns import Part, read_columns, write_column
from infaas.rpc.hop.frames import Buffer, FrameError
from infaas.rpc.tensors import NUMPY
from infaas.rpc.v1 import worker_pb2 as pb
from infaas.testing.builders import a_query

NOW = 1_000.0
"""On the controller's clock."""
THEN = 50.0
"""On the worker's."""
FATES = ("answered", "failed", "left", "taken back", "late")
"""Of a query at the worker; the last two never run."""
TRACE = TraceContext("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "them=1")
datatypes = st.sampled_from(list(Datatype))


def filler(seed: str, datatype: Datatype, shape: Sequence[int]) -> bytes:
    """Bytes that tell whose they are. Those of BYTES are of any number: the hop does not look into them."""
    rng = random.Random(seed)
    return rng.randbytes(rng.randrange(9) if datatype is Datatype.BYTES else math.prod(shape) * datatype.itemsize)


@st.composite
def batches(draw: Any) -> list[Ticket]:
    """Tickets whose queries share a signature, their inputs in any order."""
    columns = draw(st.lists(st.tuples(datatypes, st.lists(st.integers(0, 3), max_size=2)), min_size=1, max_size=3))
    outputs = draw(st.sampled_from([(), ("y",), ("z", "y")]))
    tickets = []
    for number in draw(st.lists(st.integers(1, 2**40), min_size=1, max_size=6, unique=True)):
        items = draw(st.integers(1, 4))
        tensors = []
        for name, (datatype, tail) in zip("xéz", columns, strict=False):
            data: Buffer = filler(f"{number} {name}", datatype, (items, *tail))
            data = memoryview(b"ab" + data)[2:] if draw(st.booleans()) else data
            tensors.append(Tensor(name, datatype, (items, *tail), data))
        query = a_query(
            items=items, inputs=tuple(draw(st.permutations(tensors))), outputs=outputs,
            trace=draw(st.sampled_from([None, TRACE])), deadline=NOW + draw(st.floats(-1, 100)),
        )  # fmt: skip
        tickets.append(Ticket(number, query, None))
    return tickets


def sent(tickets: Sequence[Ticket]) -> tuple[pb.Batch, memoryview]:
    """As the worker has it."""
    head, segments = encode_batch(7, "i1", tickets, NOW)
    return pb.ControllerMessage.FromString(head).batch, memoryview(b"".join(segments))


def taken(batch: pb.Batch, payload: memoryview) -> tuple[BatchIn, Queries]:
    queries = messages.to_queries(batch, THEN)
    return messages.to_batch(batch, queries.items, payload), queries


def answered(queries: Queries, ran: Ran) -> BatchResult:
    """As the controller has it."""
    message, segments = messages.ran(7, queries, ran)
    done = pb.WorkerMessage.FromString(message.SerializeToString()).done
    assert done.id == 7
    return batch_result(done, memoryview(b"".join(segments)))


def echo(batch: BatchIn, failing: Collection[int] = ()) -> BatchOut:
    """Every input back as an output of its name, but of the queries in `failing` (their places)."""
    if batch.whole is not None and not failing:
        return BatchOut.of_whole(batch.input_names, batch.datatypes, batch.whole, 0.2)
    outcomes: list[tuple[Value, ...] | QueryError] = [
        QueryError(Code.MODEL_FAILED, f"no {place}") if place in failing else query.inputs
        for place, query in enumerate(batch.queries)
    ]
    return BatchOut(batch.input_names, batch.datatypes, outcomes, 0.2)


def tensors_of(result: BatchResult, number: int) -> dict[str, Tensor]:
    return {tensor.name: tensor for tensor in result.tensors(number)}


# -- there


@given(batches())
def test_what_a_worker_is_sent_is_what_the_queries_hold(tickets: list[Ticket]) -> None:
    said, payload = sent(tickets)
    batch, queries = taken(said, payload)
    assert (said.id, said.instance, tuple(said.outputs)) == (7, "i1", batch.outputs)
    assert batch.outputs == tickets[0].query.outputs
    assert tuple(batch.items) == tuple(ticket.items for ticket in tickets)
    assert (queries.ids, queries.items) == (tuple(ticket.number for ticket in tickets), tuple(batch.items))
    for ticket, query, deadline in zip(tickets, batch.queries, queries.deadlines, strict=True):
        inputs = {
            name: Tensor(name, datatype, value.shape, bytes(value.data))
            for name, datatype, value in zip(batch.input_names, batch.datatypes, query.inputs, strict=True)
        }
        assert inputs == {tensor.name: tensor for tensor in ticket.query.inputs}
        assert query.items == ticket.items
        assert deadline - THEN == pytest.approx(max(1e-6, ticket.deadline - NOW), abs=2e-6)
    traced = {said.queries[trace.place]: TraceContext(trace.traceparent, trace.tracestate) for trace in said.traces}
    assert traced == {ticket.number: TRACE for ticket in tickets if ticket.query.trace is not None}


@given(batches())
def test_tensors_of_numbers_lie_together_where_they_can_be_read_in_place(tickets: list[Ticket]) -> None:
    batch, _ = taken(*sent(tickets))
    whole = batch.whole
    if Datatype.BYTES in batch.datatypes:
        assert whole is None
        return
    assert whole is not None
    for place, (datatype, value) in enumerate(zip(batch.datatypes, whole.values, strict=True)):
        assert bytes(value.data) == b"".join(query.inputs[place].data for query in batch.queries)
        if len(value.data):
            assert np.frombuffer(value.data, NUMPY[datatype]).reshape(value.shape).flags.aligned


def test_a_batch_is_not_copied_on_its_way_out_and_its_rows_are_views_on_its_way_in() -> None:
    data = memoryview(bytes(range(8)))
    tickets = [Ticket(n, a_query(inputs=(Tensor("x", Datatype.UINT8, (1, 8), data),)), None) for n in (1, 2)]
    _, segments = encode_batch(7, "i1", tickets, NOW)
    assert [segment is data for segment in segments] == [True, True]
    said, payload = sent(tickets)
    batch, _ = taken(said, payload)
    for query in batch.queries:
        (value,) = query.inputs
        assert isinstance(value.data, memoryview)
        assert value.data.obj is payload.obj


def test_a_query_without_a_deadline_has_the_hard_limit() -> None:
    for said in ([], [0, 0]):
        batch = pb.Batch(queries=[1, 2], items=[1, 1], remaining_us=said)
        assert set(messages.to_queries(batch, THEN).deadlines) == {THEN + HARD_LIMIT_S}


def a_batch(**given: Any) -> pb.Batch:
    """Two queries of one item each: `x` FP32 [1, 2]."""
    inputs = [pb.Column(name="x", datatype="FP32", tail=[2])]
    return pb.Batch(**{"id": 7, "instance": "i1", "inputs": inputs, "queries": [1, 2], "items": [1, 1], **given})


@pytest.mark.parametrize(
    ("given", "size", "fact"),
    [
        ({}, 15, "1 tensors of 16 bytes in all come with 15 bytes"),
        ({}, 17, "1 tensors of 16 bytes in all come with 17 bytes"),
        ({"items": [1]}, 16, "2 queries come with 1 numbers of items"),
        ({"remaining_us": [5]}, 16, "and 1 deadlines"),
        ({"queries": [3, 3]}, 16, "names a query twice"),
        ({"items": [2, 0]}, 16, "a query holds no items"),
        ({"traces": [pb.QueryTrace(place=2)]}, 16, "a trace is of query 2 of 2"),
        ({"inputs": [pb.Column(name="x", datatype="FP8")]}, 16, "'x' has datatype 'FP8'"),
        ({"inputs": [pb.Column(name="x", datatype="INT8", tail=[-8])]}, 16, "cannot have the dimensions"),
        ({"sizes": [16]}, 16, "1 sizes of BYTES come with 0"),
        ({"inputs": []}, 16, "0 tensors of 0 bytes"),
    ],
)
def test_a_batch_that_contradicts_itself_is_refused_in_words(given: dict[str, Any], size: int, fact: str) -> None:
    with pytest.raises(InvalidError, match=fact):
        taken(a_batch(**given), memoryview(bytes(size)))


# -- and back


@given(batches(), st.data())
def test_every_query_gets_its_own_outputs_or_its_own_end_whatever_befell_the_others(
    tickets: list[Ticket], data: st.DataObject
) -> None:
    batch, queries = taken(*sent(tickets))
    fates = {ticket.number: data.draw(st.sampled_from(FATES)) for ticket in tickets}
    ids = tuple(fates)
    held = Held(cast(Owner, None), 7, InstanceId("i1"), batch, ids, 0.0, 1.0)
    run = tuple(number for number in ids if fates[number] in ("answered", "failed", "left"))
    failing = [place for place, number in enumerate(run) if fates[number] == "failed"]
    cancelled = frozenset(number for number in ids if fates[number] in ("left", "taken back"))
    ran = Ran(run, echo(held.only(run), failing), cancelled, 0.1, 0.2)
    result = answered(queries, ran)
    assert (result.error, result.was_running, result.staged_s, result.run_s) == ("", True, 0.1, 0.2)
    assert set(result.outputs or {}) == {number for number in ids if fates[number] == "answered"}
    for ticket in tickets:
        if fates[ticket.number] == "answered":
            assert tensors_of(result, ticket.number) == {tensor.name: tensor for tensor in ticket.query.inputs}
    codes = {number: code for number, (code, _) in (result.failed or {}).items()}
    ends = {"failed": "model-failed", "left": "cancelled", "taken back": "cancelled", "late": "deadline-passed"}
    assert codes == {number: ends[fate] for number, fate in fates.items() if fate in ends}


@given(st.lists(st.tuples(st.integers(1, 3), st.lists(st.integers(0, 3), max_size=3)), max_size=5), datatypes)
def test_outputs_of_any_shapes_come_back_in_them(queries: list[tuple[int, list[int]]], datatype: Datatype) -> None:
    items = [count for count, _ in queries]
    parts: list[Part] = [
        (tuple(shape), filler(f"{place}", datatype, shape)) for place, (_, shape) in enumerate(queries)
    ]
    done = pb.BatchDone(queries=range(len(items)), items=items)
    segments = [
        segment
        for name in ("y", "z")
        for segment in write_column(done.outputs, done.sizes, name, datatype, items, parts)
    ]
    done = pb.BatchDone.FromString(done.SerializeToString())
    columns = read_columns(done.outputs, items, done.sizes, memoryview(b"".join(segments)))
    assert [(column.name, column.datatype) for column in columns] == [("y", datatype), ("z", datatype)]
    for column in columns:
        assert [column.part(place) for place in range(len(items))] == parts
        if column.is_even:
            assert math.prod(column.shape) * datatype.itemsize == len(column.data)


def test_a_whole_answer_is_sent_from_where_it_lies() -> None:
    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    value = Value(array.shape, array.reshape(-1).view(np.uint8).data)
    out = BatchOut.of_whole(("y",), (Datatype.FP32,), Whole((1, 2), (value,)), 0.1)
    queries = Queries.of((1, 1, 9.0), (2, 2, 9.0))
    message, segments = messages.ran(7, queries, Ran((1, 2), out, frozenset(), 0.0, 0.1))
    assert [segment is value.data for segment in segments] == [True]
    assert (list(message.done.queries), list(message.done.items), list(message.done.sizes)) == ([1, 2], [1, 2], [])
    assert [(column.name, list(column.tail)) for column in message.done.outputs] == [("y", [2])]


def test_a_failed_batch_says_what_it_failed_of() -> None:
    result = answered(Queries.of((1, 1, 9.0)), Ran((1,), ModelError("it raised"), frozenset(), 0.1, 0.2))
    assert (result.error, result.reason, result.was_running) == ("model-failed", "it raised", True)
    assert result.outputs == result.failed == {}


TWO = Queries.of((1, 1, 9.0), (2, 2, 9.0))


@pytest.mark.parametrize(
    ("values", "fact"),
    [
        ((Value((3, 2), bytes(23)),), "'y' came with 23 bytes; shape [3, 2] of FP32 takes 24"),
        ((Value((4, 2), bytes(32)),), "'y' came in shape [4, 2] for 3 items"),
        ((Value((), bytes(4)),), "'y' came in shape [] for 3 items"),
        ((), "0 values for 1 outputs"),
    ],
)
def test_an_executor_whose_whole_answer_is_none_costs_its_batch_and_not_the_connection(
    values: tuple[Value, ...], fact: str
) -> None:
    out = BatchOut(("y",), (Datatype.FP32,), ((), ()), 0.1, Whole((1, 2), values))
    result = answered(TWO, Ran((1, 2), out, frozenset(), 0.0, 0.1))
    assert (result.error, result.outputs) == (Code.INTERNAL.value, {})
    assert fact in result.reason


def test_an_executor_that_answers_too_few_queries_costs_its_batch_and_not_the_connection() -> None:
    out = BatchOut(("y",), (Datatype.FP32,), ((Value((1,), bytes(4)),),), 0.1)
    result = answered(TWO, Ran((1, 2), out, frozenset(), 0.0, 0.1))
    assert (result.error, result.reason) == (Code.INTERNAL.value, "the executor gave 1 answers to 2 queries")


@pytest.mark.parametrize("wrong", [(Value((2,), bytes(9)),), (), (Value((2,), bytes(8)), Value((2,), bytes(8)))])
def test_a_value_that_is_none_is_its_own_querys_end(wrong: tuple[Value, ...]) -> None:
    out = BatchOut(("y",), (Datatype.FP32,), ((Value((1,), b"good"),), wrong), 0.1)
    result = answered(TWO, Ran((1, 2), out, frozenset(), 0.0, 0.1))
    assert result.error == ""
    assert bytes(tensors_of(result, 1)["y"].data) == b"good"
    assert {number: code for number, (code, _) in (result.failed or {}).items()} == {2: Code.INTERNAL.value}


# -- noise


@st.composite
def damage(draw: Any) -> Any:
    """What is done to bytes: pieces cut out, doubled or overwritten, the end cut off."""
    steps = draw(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 6), st.binary(max_size=3)), min_size=1, max_size=4))

    def done(data: bytes) -> bytes:
        for where, size, put in steps:
            at = int(where * len(data))
            data = data[:at] + (put or data[at : at + size] * 2) + data[at + size :]
        return data

    return done


@given(batches(), damage(), damage(), st.booleans())
def test_a_damaged_batch_is_a_batch_or_an_error_in_words(
    tickets: list[Ticket], hurt: Any, hurt_payload: Any, is_payload_hurt: bool
) -> None:
    head, segments = encode_batch(7, "i1", tickets, NOW)
    payload = b"".join(segments)
    payload = hurt_payload(payload) if is_payload_hurt else payload
    try:
        said = pb.ControllerMessage.FromString(hurt(head)).batch
        batch, queries = taken(said, memoryview(payload))
    except (DecodeError, InvalidError):
        return
    values = [value for query in batch.queries for value in query.inputs]
    assert sum(len(value.data) for value in values) == len(payload)
    assert len(batch.queries) == len(queries) == len(said.queries)
    assert all(trace.place < len(queries) for trace in said.traces)


@given(batches(), damage(), damage(), st.booleans())
def test_a_damaged_answer_is_an_answer_or_an_error_of_the_protocol(
    tickets: list[Ticket], hurt: Any, hurt_payload: Any, is_payload_hurt: bool
) -> None:
    batch, queries = taken(*sent(tickets))
    message, segments = messages.ran(7, queries, Ran(queries.ids, echo(batch), frozenset(), 0.1, 0.2))
    payload = b"".join(segments)
    payload = hurt_payload(payload) if is_payload_hurt else payload
    try:
        done = pb.WorkerMessage.FromString(hurt(message.SerializeToString())).done
        result = batch_result(done, memoryview(payload))
    except (DecodeError, FrameError):
        return
    for number in result.outputs or {}:
        try:
            tensors = result.tensors(number)
        except ValueError:
            continue
        for tensor in tensors:
            fixed = tensor.datatype is not Datatype.BYTES
            assert not fixed or len(tensor.data) == math.prod(tensor.shape) * tensor.datatype.itemsize


# -- within a process, where plain batches are not written


@given(batches())
def test_what_is_given_is_what_would_be_written_there_and_back(tickets: list[Ticket]) -> None:
    first, offered = tickets[0].query, given_batch(7, "i1", tickets)
    is_plain = all(tensor.datatype is not Datatype.BYTES for tensor in first.inputs)
    is_plain = is_plain and all(ticket.query.trace is None for ticket in tickets)
    assert (offered is not None) == is_plain
    if offered is None:
        return
    queries, batch = handover.taken(offered)
    assert (offered.number, offered.instance, batch.outputs) == (7, "i1", first.outputs)
    assert queries.deadlines == tuple(ticket.deadline for ticket in tickets)
    written, said = taken(*sent(tickets))
    assert (queries.ids, queries.items) == (said.ids, said.items)
    for ticket, query in zip(tickets, batch.queries, strict=True):
        columns = zip(batch.input_names, batch.datatypes, query.inputs, strict=True)
        inputs = {name: Tensor(name, datatype, value.shape, bytes(value.data)) for name, datatype, value in columns}
        assert inputs == {tensor.name: tensor for tensor in ticket.query.inputs}
    ran = Ran(queries.ids, echo(batch), frozenset(), 0.1, 0.2, 9)
    answer = handover.answer(7, queries, ran, 3)
    assert answer is not None
    found, expected = given_result(answer), answered(said, ran)
    assert (found.error, found.was_running, found.staged_s, found.run_s) == ("", True, 0.1, 0.2)
    assert (found.run_items, found.others, found.failed) == (expected.run_items, 3, expected.failed)
    for ticket in tickets:
        assert tensors_of(found, ticket.number) == tensors_of(expected, ticket.number)
    assert written.outputs == batch.outputs


def test_a_query_that_runs_alone_is_written() -> None:
    ticket = Ticket(1, a_query(inputs=(Tensor("x", Datatype.UINT8, (1, 2), b"ab"),)), None)
    assert given_batch(7, "i1", [ticket]) is not None
    ticket.deaths = 1
    assert given_batch(7, "i1", [ticket]) is None


def test_answers_that_are_not_plain_are_written() -> None:
    queries, whole = Queries.of((1, 1, 9.0), (2, 2, 9.0)), Whole((1, 2), (Value((3, 2), bytes(6)),))
    result = BatchOut.of_whole(("y",), (Datatype.UINT8,), whole, 0.2)
    plain = Ran(queries.ids, result, frozenset(), 0.1, 0.2)
    assert handover.answer(7, queries, plain, 0) is not None
    short = BatchOut.of_whole(("y",), (Datatype.UINT8,), Whole((1, 2), (Value((3, 2), bytes(5)),)), 0.2)
    others = [
        Ran(queries.ids, result, frozenset({2}), 0.1, 0.2),
        Ran((1,), result, frozenset(), 0.1, 0.2),
        Ran(queries.ids, ModelError("no"), frozenset(), 0.1, 0.2),
        Ran(queries.ids, echo(BatchIn(("y",), (Datatype.UINT8,), ()), ()), frozenset(), 0.1, 0.2),
        Ran(queries.ids, short, frozenset(), 0.1, 0.2),
    ]
    assert [handover.answer(7, queries, ran, 0) for ran in others] == [None] * len(others)
