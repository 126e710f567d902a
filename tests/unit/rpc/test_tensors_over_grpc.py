"""gRPC's tensors: typed and raw contents; round trips, and everything malformed by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infaas.domain.tensor import Datatype, Tensor
from infaas.errors import InvalidError, UnsupportedError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.rpc.tensors import NUMPY, as_array, pack_bytes, unpack_bytes
from infaas.rpc.tensors_grpc import (
    CONTENTS,
    VIEW_BYTES,
    decode_request,
    encode_answer,
    encode_stream_answer,
    parse_message,
    read_parameters,
)

SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)
TYPED = [d for d in Datatype if d not in (Datatype.BYTES, Datatype.FP16)]


def arrays_of(datatypes: list[Datatype]) -> st.SearchStrategy[tuple[Datatype, np.ndarray]]:
    return st.sampled_from(datatypes).flatmap(lambda d: st.tuples(st.just(d), hnp.arrays(NUMPY[d], SHAPES)))


def a_message(datatype: str, shape: list[int], *, raw: bytes | None = None, **contents: Any) -> Any:
    message = pb.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    if raw is not None:
        message.raw_input_contents.append(raw)
    return pb.ModelInferRequest.FromString(message.SerializeToString())


@given(arrays_of(TYPED))
def test_typed_contents_arrive_as_they_were(made: tuple[Datatype, np.ndarray]) -> None:
    datatype, array = made
    field = CONTENTS[datatype]
    assert field is not None
    message = a_message(datatype.value, list(array.shape), **{field: array.ravel().tolist()})
    (tensor,) = decode_request(message).inputs
    assert tensor.shape == array.shape
    np.testing.assert_array_equal(as_array(tensor), array)


@given(arrays_of([*TYPED, Datatype.FP16]))
def test_raw_contents_are_handed_on_and_answered_raw(made: tuple[Datatype, np.ndarray]) -> None:
    datatype, array = made
    (tensor,) = decode_request(a_message(datatype.value, list(array.shape), raw=array.tobytes())).inputs
    assert tensor == Tensor("x", datatype, array.shape, array.tobytes())
    sent = encode_answer([tensor], model_name="m", model_version="2", id="7", parameters={"variant": "v"})
    answer = pb.ModelInferResponse.FromString(sent)
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "2", "7")
    assert list(answer.raw_output_contents) == [array.tobytes()]
    assert list(answer.outputs[0].shape) == list(array.shape)


@given(st.lists(st.binary(max_size=8), max_size=5))
def test_bytes_travel_typed_or_framed(elements: list[bytes]) -> None:
    (typed,) = decode_request(a_message("BYTES", [len(elements)], bytes_contents=elements)).inputs
    (raw,) = decode_request(a_message("BYTES", [len(elements)], raw=pack_bytes(elements))).inputs
    assert unpack_bytes(typed.data) == unpack_bytes(raw.data) == elements


SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.text(st.just("x"), min_size=200, max_size=200),
)


@given(st.dictionaries(st.text(max_size=5), SCALARS))
def test_parameters_round_trip(parameters: dict[str, Any]) -> None:
    sent = encode_answer([], model_name="m", model_version="1", parameters=parameters)
    assert read_parameters(pb.ModelInferResponse.FromString(sent).parameters) == parameters


NAMES = st.text(max_size=5) | st.sampled_from(["x" * 127, "x" * 128, "é" * 10_000])
TENSORS = st.lists(
    st.builds(
        Tensor,
        NAMES,
        st.sampled_from(Datatype),
        st.lists(st.integers(0, 2**31 - 1), max_size=4).map(tuple),
        st.binary(max_size=9) | st.sampled_from([b"", bytes(127), bytes(128), memoryview(bytes(20_000))]),
    ),
    max_size=3,
)


@given(TENSORS, NAMES, NAMES, NAMES, st.dictionaries(NAMES, SCALARS, max_size=3))
def test_what_is_written_by_hand_is_what_the_generated_class_writes(
    tensors: list[Tensor], name: str, version: str, id_: str, parameters: dict[str, Any]
) -> None:
    right = pb.ModelInferResponse(model_name=name, model_version=version, id=id_)
    for key, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}[type(value)]
        setattr(right.parameters[key], kind, value)
    for tensor in tensors:
        right.outputs.add(name=tensor.name, datatype=tensor.datatype.value, shape=tensor.shape)
        right.raw_output_contents.append(bytes(tensor.data))
    said: dict[str, Any] = {"model_name": name, "model_version": version, "id": id_, "parameters": parameters}
    sent = encode_answer(tensors, **said)
    assert pb.ModelInferResponse.FromString(sent) == right
    streamed = pb.ModelStreamInferResponse.FromString(encode_stream_answer(tensors, **said))
    assert streamed == pb.ModelStreamInferResponse(infer_response=right)


def _two_inputs_one_raw() -> Any:
    message = a_message("INT32", [1], raw=bytes(4))
    message.inputs.add(name="y", datatype="INT32", shape=[1])
    return message


def _twice() -> Any:
    message = a_message("INT32", [1], int_contents=[1])
    message.inputs.add().CopyFrom(message.inputs[0])
    return message


def _empty_parameter() -> Any:
    message = a_message("INT32", [1], int_contents=[1])
    message.parameters["p"].SetInParent()
    return message


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (a_message("INT99", [1], int_contents=[1]), "datatype 'INT99'"),
        (a_message("INT32", [-1], int_contents=[1]), "every dimension must be from 0"),
        (a_message("INT32", [2**40, 2**40], int_contents=[1]), "every dimension must be from 0"),
        (a_message("INT32", [2], int_contents=[1]), "1 int_contents; shape [2] takes 2"),
        (a_message("INT32", [1]), "0 int_contents; shape [1] takes 1"),
        (a_message("INT32", [1], fp32_contents=[1.0]), "its contents go in int_contents, not fp32_contents"),
        (a_message("INT8", [1], int_contents=[300]), "outside the range of INT8"),
        (a_message("UINT16", [1], uint_contents=[70000]), "outside the range of UINT16"),
        (a_message("FP16", [1], fp32_contents=[1.0]), "FP16, which has no typed contents"),
        (a_message("INT32", [2], raw=bytes(7)), "7 bytes of data; shape [2] of INT32 takes 8"),
        (a_message("INT32", [2], raw=bytes(9)), "9 bytes of data"),
        (a_message("BYTES", [1], raw=b"\x09\0\0\0a"), "past the end"),
        (a_message("INT32", [1], raw=bytes(4), int_contents=[1]), "both contents and raw_input_contents"),
        (_two_inputs_one_raw(), "1 raw_input_contents for 2 inputs"),
        (_twice(), "'x' is there twice"),
        (_empty_parameter(), "parameter 'p' has no value"),
    ],
)
def test_a_malformed_message_is_refused_in_words(message: Any, words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        decode_request(message)
    assert words in caught.value.text


def test_shared_memory_is_refused_by_name() -> None:
    message = a_message("INT32", [1])
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(UnsupportedError, match="shared_memory_region"):
        decode_request(message)


def a_large_message(*raw: bytes) -> bytes:
    message = pb.ModelInferRequest(model_name="m", id="7", raw_input_contents=raw)
    for number, data in enumerate(raw):
        message.inputs.add(name=f"x{number}", datatype="UINT8", shape=[len(data)])
    return bytes(message.SerializeToString())


def test_large_raw_contents_stay_where_they_came() -> None:
    raw = [bytes([1]) * VIEW_BYTES, b"", bytes([2]) * 5]
    data = a_large_message(*raw)
    message = parse_message(data)
    assert message.raw is not None
    assert [bytes(part) for part in message.raw] == raw
    assert all(part.obj is data for part in message.raw)
    assert not message.head.raw_input_contents
    assert [bytes(tensor.data) for tensor in decode_request(message.head, message.raw).inputs] == raw


@pytest.mark.parametrize(
    "more",
    [
        b"\xba\x00\x02ab",  # raw contents by a tag of two bytes
        b"\x3a\x82\x80\x80\x80\x80\x00ab",  # by a length of six
        b"\x7b\x7c",  # a group
    ],
)
def test_a_form_that_only_the_generated_class_knows_is_left_to_it(more: bytes) -> None:
    data = a_large_message(bytes(VIEW_BYTES)) + more
    try:
        right = pb.ModelInferRequest.FromString(data)
    except DecodeError:
        with pytest.raises(DecodeError):
            parse_message(data)
    else:
        assert parse_message(data) == (right, None)


def test_unknown_fields_hide_no_raw_contents() -> None:
    data = b"\xa0\x06\x01" + a_large_message(bytes(VIEW_BYTES)) + b"\xa5\x06abcd\xa1\x06abcdefgh\xa2\x06\x01a"
    message = parse_message(data)
    assert message.raw is not None
    assert [len(part) for part in message.raw] == [VIEW_BYTES]
