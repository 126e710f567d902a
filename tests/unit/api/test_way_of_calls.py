"""Messages that differ from one before in nothing but id and values are recognised, and nothing else is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from infaas_controller.api.grpc_known import cut, known
from infaas_controller.api.grpc_way import (
    FORMS_KEPT,
    HEADS_KEPT,
    KEPT_HEAD_BYTES,
    CallHead,
    Calls,
    Form,
    read_metadata,
)
from infaas_controller.api.intake import Arrival, build_query
from infaas_controller.api.known import KNOWN_BYTES
from infaas_controller.api.service import fresh_caller

from infaas.domain.query import Requirements
from infaas.domain.task import Task
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.errors import InvalidError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.rpc.tensors_grpc import decode_request
from infaas.testing.builders import a_task

TASK = a_task(
    "t", inputs=(TensorSpec("x", Datatype.INT32, (-1, 4)), TensorSpec("flag", Datatype.BOOL, (-1, 1))), outputs=()
)
WANTED = Requirements(latency_s=0.05)


def a_message(value: int = 0, id_: str = "", flag: bytes = b"\1", items: int = 1, **more: Any) -> Any:
    message = pb.ModelInferRequest(model_name="t", id=id_, **more)
    message.inputs.add(name="x", datatype="INT32", shape=[items, 4])
    message.inputs.add(name="flag", datatype="BOOL", shape=[items, 1])
    message.raw_input_contents.extend([np.full(4 * items, value, np.int32).tobytes(), flag * items])
    return message


def as_bytes(message: Any) -> bytes:
    return bytes(message.SerializeToString())


def learn(calls: Calls, head: CallHead, data: bytes, *, has_deadline: bool = False, task: Task = TASK) -> None:
    begun = cut(data)
    assert begun is not None
    request = decode_request(pb.ModelInferRequest.FromString(data))
    query = build_query("t", None, task, request, WANTED, fresh_caller(), Arrival(0.0))
    taught = known(task, data, begun, request, query, WANTED)
    if taught is not None:
        calls.remember(head, begun, data, Form(None, taught), has_deadline=has_deadline)


def recognised(
    calls: Calls, head: CallHead, data: bytes, *, has_deadline: bool = False
) -> tuple[Form, int, str] | None:
    begun = cut(data)
    form = None if begun is None else calls.form_of(head, begun, data, has_deadline=has_deadline)
    if begun is None or form is None:
        return None
    return form, begun.begin, begun.id


def knowing(*messages: Any) -> tuple[Calls, CallHead]:
    calls = Calls()
    head, _ = calls.head_of([("x-infaas-slo-latency-ms", "50")])
    for message in messages:
        learn(calls, head, as_bytes(message))
    return calls, head


@pytest.mark.parametrize("id_", ["", "7", "another", "é" * 60, "x" * 127])
def test_a_message_with_another_id_and_other_values_is_recognised(id_: str) -> None:
    calls, head = knowing(a_message(1, "first"), a_message(1))
    data = as_bytes(a_message(5, id_, b"\0"))
    found = recognised(calls, head, data)
    assert found is not None
    form, begin, read_id = found
    assert (form.known.handle, form.version, read_id) == ("t", None, id_)
    tensors = form.known.inputs(data, begin)
    ordinary = decode_request(pb.ModelInferRequest.FromString(data)).inputs
    assert [tensor._replace(data=bytes(tensor.data)) for tensor in tensors] == list(ordinary)
    assert all(isinstance(tensor.data, memoryview) and tensor.data.obj is data for tensor in tensors)
    assert (form.known.requirements, form.known.request.id) == (WANTED, "")


@pytest.mark.parametrize(
    "other",
    [
        as_bytes(a_message(items=2)),
        as_bytes(a_message(model_version="1")),
        as_bytes(a_message(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name="y")])),
        as_bytes(a_message(parameters={"timeout": pb.InferParameter(int64_param=5)})),
        as_bytes(a_message(id_="x" * 128)),
        as_bytes(a_message())[:-1],
        as_bytes(a_message()) + b"\x1a\x01z",
        as_bytes(a_message()).replace(b"\x0a\x01t", b"\x0a\x01u", 1),
        as_bytes(a_message()).replace(b"flag", b"flog", 1),
        as_bytes(a_message()).replace(b"\x0a\x01t", b"\x0a\x01t\x1a\x02\xff\xff", 1),
        as_bytes(a_message()).replace(b"\x0a\x01t", b"\x0a\x01t\x1a\x7f", 1),
        b"\x1a\x017" + as_bytes(a_message()),
        b"",
        b"\x0a",
        b"\x0a\x01t",
        b"\x0a\x01t\x1a",
        b"\x0a\x01t\x12",
        b"\x0a\x7ft",
    ],
)
def test_anything_else_is_left_to_the_generated_class(other: bytes) -> None:
    calls, head = knowing(a_message())
    assert recognised(calls, head, other) is None


def test_what_is_no_value_of_its_datatype_is_refused_in_the_same_words() -> None:
    calls, head = knowing(a_message())
    data = as_bytes(a_message(flag=b"\7"))
    found = recognised(calls, head, data)
    assert found is not None
    with pytest.raises(InvalidError) as known:
        found[0].known.inputs(data, found[1])
    with pytest.raises(InvalidError) as ordinary:
        decode_request(pb.ModelInferRequest.FromString(data))
    assert known.value.text == ordinary.value.text


def test_a_form_holds_for_its_metadata_and_for_calls_with_or_without_a_deadline() -> None:
    calls, head = knowing(a_message())
    data = as_bytes(a_message(2))
    other, _ = calls.head_of([("x-infaas-slo-latency-ms", "60")])
    assert recognised(calls, other, data) is None
    assert recognised(calls, head, data, has_deadline=True) is None
    learn(calls, head, data, has_deadline=True)
    assert recognised(calls, head, data, has_deadline=True) is not None
    assert recognised(calls, head, data) is not None


def _reordered() -> bytes:
    data = as_bytes(a_message(id_="7"))
    return data.replace(b"\x1a\x017", b"", 1) + b"\x1a\x017"


@pytest.mark.parametrize(
    "data",
    [
        _reordered(),
        as_bytes(a_message()) + b"\x0a\x01t",
        as_bytes(a_message(id_="7")) + b"\x1a\x018",
        as_bytes(a_message(parameters={"note": pb.InferParameter(string_param="x" * (KNOWN_BYTES + 1))})),
    ],
    ids=["id at the end", "name again", "id again", "much said"],
)
def test_an_unusual_message_teaches_nothing(data: bytes) -> None:
    calls, head = Calls(), CallHead({})
    learn(calls, head, data)
    assert recognised(calls, head, data) is None


def test_typed_contents_teach_nothing() -> None:
    message = a_message()
    del message.raw_input_contents[:]
    message.inputs[0].contents.int_contents.extend(range(4))
    message.inputs[1].contents.bool_contents.append(True)
    calls, head = knowing(message)
    assert recognised(calls, head, as_bytes(message)) is None


PIECES = st.sampled_from([b"", b"\x0a\x01t", b"\x1a\x017", b"\x12\x011", b"\x3a\x04abcd", b"\xff", b"\0", b"\x3a"])


@given(st.integers(-9, 9), st.text(max_size=9), st.lists(st.tuples(st.integers(0, 99), st.integers(0, 4), PIECES)))
def test_what_is_recognised_is_what_the_generated_class_reads(
    value: int, id_: str, damage: list[tuple[int, int, bytes]]
) -> None:
    calls, head = knowing(a_message(), a_message(items=2), a_message(model_version="1"))
    data = as_bytes(a_message(value, id_))
    for at, size, piece in damage:
        data = data[:at] + piece + data[at + size :]
    found = recognised(calls, head, data)
    if found is None:
        return
    form, begin, read_id = found
    try:
        message = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        pytest.fail("recognised, and no message")
    assert (message.model_name, message.id, form.version) == ("t", read_id, None)
    try:
        ordinary = decode_request(message)
    except InvalidError:
        with pytest.raises(InvalidError):
            form.known.inputs(data, begin)
        return
    inputs = form.known.inputs(data, begin)
    assert [tensor._replace(data=bytes(tensor.data)) for tensor in inputs] == list(ordinary.inputs)
    assert (form.known.request.outputs, form.known.request.parameters) == (ordinary.outputs, ordinary.parameters)


# Metadata


def test_metadata_are_read_as_headers_are() -> None:
    sent = [
        ("user-agent", "a"), ("x-infaas-objective", "cost"), ("x-infaas-objective", "latency"), ("authorization", "b"),
        ("x-infaas-explain-bin", b"\0"), ("grpc-trace-bin", b"\0"), ("traceparent", "t"), ("x-request-id", "7"),
    ]  # fmt: skip
    assert read_metadata(sent) == {
        "x-infaas-objective": "cost, latency",
        "authorization": "b",
        "x-infaas-explain-bin": "",
        "traceparent": "t",
        "x-request-id": "7",
    }


def test_the_same_metadata_are_one_head_and_what_is_of_one_call_is_its_own() -> None:
    calls = Calls()
    usual = [("user-agent", "a"), ("x-infaas-slo-latency-ms", "50")]
    head, fields = calls.head_of(usual)
    assert fields is head.fields == {"x-infaas-slo-latency-ms": "50"}
    assert calls.head_of(list(usual)) == (head, fields)
    assert calls.head_of([("user-agent", "another"), usual[1]])[0] is head
    named, own = calls.head_of([*usual, ("x-request-id", "7")])
    assert named is head
    assert own == {"x-infaas-slo-latency-ms": "50", "x-request-id": "7"}
    assert "x-request-id" not in head.fields
    assert calls.head_of([("x-infaas-slo-latency-ms", "51")])[0] is not head
    assert calls.head_of(None)[1] == {}


def test_what_is_remembered_is_bounded_in_number_and_size() -> None:
    calls = Calls()
    for number in range(2 * HEADS_KEPT):
        head, _ = calls.head_of([("x-infaas-slo-latency-ms", str(number)), ("noise", str(number))])
        learn(calls, head, as_bytes(a_message()))
    as_sent, heads, forms = calls.kept
    assert as_sent <= HEADS_KEPT
    assert heads <= HEADS_KEPT
    assert forms <= FORMS_KEPT
    long = [("x-infaas-objective", "y" * KEPT_HEAD_BYTES)]
    before = calls.kept
    assert calls.head_of(long)[1] == dict(long)
    assert calls.kept == before


METADATA = st.lists(
    st.tuples(
        st.sampled_from(["x-request-id", "traceparent", "x-infaas-objective", "user-agent", "x-infaas-a-bin"]),
        st.sampled_from(["1", "cost", "", b"\0"]),
    ),
    max_size=5,
)


@given(st.lists(METADATA, min_size=1, max_size=8))
def test_memory_changes_nothing(calls_sent: list[list[tuple[str, str | bytes]]]) -> None:
    calls = Calls()
    for sent in calls_sent * 2:
        assert calls.head_of(sent)[1] == read_metadata(sent)
