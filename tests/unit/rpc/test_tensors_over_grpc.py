"""gRPC's tensors: typed and raw contents; round trips, and everything malformed by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infaas.domain.tensor import Datatype, Tensor
from infaas.errors import InvalidError, UnsupportedError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.rpc.tensors import NUMPY, as_array, pack_bytes, unpack_bytes
from infaas.rpc.tensors_grpc import CONTENTS, decode_request, encode_answer, read_parameters, write_parameters

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
    answer = encode_answer([tensor], model_name="m", model_version="2", id="7", parameters={"variant": "v"})
    assert (answer.model_name, answer.model_version, answer.id) == ("m", "2", "7")
    assert list(answer.raw_output_contents) == [array.tobytes()]
    assert list(answer.outputs[0].shape) == list(array.shape)


@given(st.lists(st.binary(max_size=8), max_size=5))
def test_bytes_travel_typed_or_framed(elements: list[bytes]) -> None:
    (typed,) = decode_request(a_message("BYTES", [len(elements)], bytes_contents=elements)).inputs
    (raw,) = decode_request(a_message("BYTES", [len(elements)], raw=pack_bytes(elements))).inputs
    assert unpack_bytes(typed.data) == unpack_bytes(raw.data) == elements


@given(
    st.dictionaries(
        st.text(max_size=5), st.one_of(st.booleans(), st.integers(-(2**63), 2**63 - 1), st.text(max_size=5))
    )
)
def test_parameters_round_trip(parameters: dict[str, Any]) -> None:
    message = pb.ModelInferRequest()
    write_parameters(message.parameters, parameters)
    assert read_parameters(message.parameters) == parameters


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
