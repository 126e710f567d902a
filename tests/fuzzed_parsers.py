"""What both protocols' readers promise, whatever strangers send: a value or a refusal in words.

Each promise is tried on a few examples by the unit tests and on a few thousand by the contract tests.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fuzzing import (
    check_tensors,
    damaged,
    grpc_bytes,
    grpc_messages,
    header_texts,
    headers,
    junk,
    rest_bodies,
    rest_requests,
    twins,
    value_or_refusal,
)
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from infaas_controller.api.headers import answer_fields, read_caller
from infaas_controller.api.intake import parse_version

from infaas.domain.query import Requirements
from infaas.domain.task import Task, TaskDefaults
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.domain.variant import Variant
from infaas.errors import InvalidError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.rpc import tensors_grpc, tensors_json
from infaas.rpc.codec import decode, encode, from_plain
from infaas.rpc.requirements import MAX_LATENCY_MS, read_requirements
from infaas.rpc.tensors import InferRequest
from infaas.testing.builders import a_task, a_variant

SPECS = st.lists(
    st.builds(
        TensorSpec,
        st.just("x"),
        st.sampled_from(list(Datatype)),
        st.lists(st.sampled_from([-1, 0, 1, 4]), max_size=3).map(lambda tail: (-1, *tail)),
    ),
    max_size=2,
)


def read_rest(request: tuple[bytes, int | None]) -> None:
    body, length = request
    decoded = value_or_refusal(lambda: tensors_json.decode_request(body, length))
    if decoded is None:
        return
    check_tensors(decoded.inputs)
    for is_binary in (True, False):
        sent = [(tensor, is_binary) for tensor in decoded.inputs]
        value_or_refusal(
            lambda sent=sent: tensors_json.encode_answer(sent, model_name="m", model_version="1", id=decoded.id)
        )
    back = read_back(decoded)
    assert [(t.name, t.datatype, t.shape, bytes(t.data)) for t in back.inputs] == [
        (t.name, t.datatype, t.shape, bytes(t.data)) for t in decoded.inputs
    ]


def read_back(decoded: InferRequest) -> InferRequest:
    """The same inputs, sent as binary data."""
    sizes = [{"binary_data_size": len(tensor.data)} for tensor in decoded.inputs]
    said = [
        {"name": t.name, "shape": t.shape, "datatype": t.datatype.value, "parameters": size}
        for t, size in zip(decoded.inputs, sizes, strict=True)
    ]
    head = json.dumps({"inputs": said}).encode()
    return tensors_json.decode_request(head + b"".join(bytes(t.data) for t in decoded.inputs), len(head))


def read_raw(request: tuple[bytes, list[TensorSpec]]) -> None:
    body, specs = request
    decoded = value_or_refusal(lambda: tensors_json.decode_raw_request(body, specs))
    if decoded is not None:
        check_tensors(decoded.inputs)


def read_grpc(message: Any) -> None:
    decoded = value_or_refusal(lambda: tensors_grpc.decode_request(message))
    if decoded is None:
        return
    check_tensors(decoded.inputs)
    answer = tensors_grpc.encode_answer(decoded.inputs, model_name="m", model_version="1", id=decoded.id)
    again = pb.ModelInferResponse.FromString(answer)
    assert list(again.raw_output_contents) == [bytes(tensor.data) for tensor in decoded.inputs]


def read_grpc_bytes(data: bytes) -> None:
    """What is cut out of a message by hand is what the generated class finds in it."""
    try:
        message = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            tensors_grpc.cut_message(data)
        return
    read_grpc(message)
    try:
        head, raw = tensors_grpc.cut_message(data)
    except DecodeError:
        return  # a form that is left to the generated class
    assert raw is not None
    whole = pb.ModelInferRequest()
    whole.CopyFrom(head)
    whole.raw_input_contents.extend(map(bytes, raw))
    assert whole.SerializeToString(deterministic=True) == message.SerializeToString(deterministic=True)
    ordinary, cut = (
        value_or_refusal(lambda: tensors_grpc.decode_request(message)),
        value_or_refusal(lambda: tensors_grpc.decode_request(head, raw)),
    )
    assert (ordinary is None) == (cut is None)
    if ordinary is not None and cut is not None:
        assert replace(ordinary, inputs=()) == replace(cut, inputs=())
        assert [t._replace(data=bytes(t.data)) for t in ordinary.inputs] == [
            t._replace(data=bytes(t.data)) for t in cut.inputs
        ]


def read_wishes(said: tuple[dict[str, str], dict[str, Any], float | None]) -> None:
    given_headers, parameters, remaining_s = said
    wishes = value_or_refusal(
        lambda: read_requirements(given_headers, parameters, TaskDefaults(), time_remaining_s=remaining_s)
    )
    if wishes is None:
        return
    assert isinstance(wishes, Requirements)
    assert wishes.latency_s is None or 0 <= wishes.latency_s <= MAX_LATENCY_MS / 1000
    assert wishes.accuracy_min is None or 0 <= wishes.accuracy_min <= 1
    assert wishes.max_cost is None or 0 <= wishes.max_cost < float("inf")


def read_words(said: tuple[str, str, str, str]) -> None:
    version, request_id, trace, body_id = said
    number = value_or_refusal(lambda: parse_version(version))
    assert number is None or number >= 1
    found = {"x-request-id": request_id, "traceparent": trace, "tracestate": trace}
    caller = value_or_refusal(lambda: read_caller(found, body_id))
    for name, text in answer_fields(caller, None) if caller else ():
        assert name
        assert text.isascii()
        assert text.isprintable()


def read_documents(value: Any) -> None:
    for kind in (Task, Variant, TaskDefaults):
        try:
            decode(json.dumps(value), kind)
        except InvalidError:
            pass
        try:
            from_plain(value, kind)
        except InvalidError:
            pass


def read_damaged_documents(body: bytes) -> None:
    try:
        variant = decode(body, Variant)
    except InvalidError:
        return
    assert decode(encode(variant), Variant) == variant


REMAINING = st.none() | st.floats(0, 1e6)
A_TASK, A_VARIANT = encode(a_task("t")), encode(a_variant("v"))
CASES: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "rest": (read_rest, rest_requests()),
    "rest-raw": (read_raw, st.tuples(st.binary(max_size=64), SPECS)),
    "rest-noise": (read_rest, st.tuples(damaged(rest_bodies), st.none())),
    "grpc": (read_grpc, grpc_messages()),
    "grpc-bytes": (read_grpc_bytes, grpc_bytes),
    "requirements": (read_wishes, st.tuples(headers, twins, REMAINING)),
    "ids-and-versions": (read_words, st.tuples(header_texts, header_texts, header_texts, header_texts)),
    "codec": (read_documents, junk),
    "codec-damaged": (read_damaged_documents, damaged(st.sampled_from([A_TASK, A_VARIANT]))),
}


def attempts(case: str, profile: settings) -> None:
    """Try what the case promises on as many examples as the profile says."""
    check, strategy = CASES[case]

    @profile
    @given(strategy)
    def attempt(value: Any) -> None:
        check(value)

    attempt()
