"""REST's tensors: JSON, binary, mixed; round trips, and everything malformed by name."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infaas.domain.tensor import Datatype, Tensor, TensorSpec
from infaas.errors import InvalidError, UnsupportedError
from infaas.rpc.tensors import NUMPY, RequestedOutput, as_array, check_inputs, classify, pack_bytes, unpack_bytes
from infaas.rpc.tensors_json import (
    FEW,
    answer_parts,
    decode_raw_request,
    decode_request,
    encode_answer,
    encode_data,
    encode_rows,
)

NUMBERS = [d for d in Datatype if d not in (Datatype.BYTES, Datatype.FP16)]
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=4)


def arrays_of(datatypes: list[Datatype]) -> st.SearchStrategy[tuple[Datatype, np.ndarray]]:
    return st.sampled_from(datatypes).flatmap(lambda d: st.tuples(st.just(d), hnp.arrays(NUMPY[d], SHAPES)))


def a_request(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "shape": [2, 2], "datatype": "INT32", "data": [1, 2, 3, 4], **changes}]}


def decode(document: Any, tail: bytes = b"", length: int | None = -1) -> Any:
    head = json.dumps(document).encode()
    header = (len(head) if tail else None) if length == -1 else length
    return decode_request(head + tail, header)


@given(arrays_of(NUMBERS), st.booleans())
def test_json_numbers_arrive_as_they_were_flat_or_nested(made: tuple[Datatype, np.ndarray], is_nested: bool) -> None:
    datatype, array = made
    data = array.tolist() if is_nested and array.size else array.ravel().tolist()
    (tensor,) = decode(a_request(shape=list(array.shape), datatype=datatype.value, data=data)).inputs
    assert (tensor.datatype, tensor.shape) == (datatype, array.shape)
    assert bytes(tensor.data) == array.tobytes() or np.isnan(array.astype(float)).any()
    np.testing.assert_array_equal(as_array(tensor), array)


@given(arrays_of([*NUMBERS, Datatype.FP16]), arrays_of([*NUMBERS, Datatype.FP16]))
def test_binary_and_json_inputs_mix(first: tuple[Datatype, np.ndarray], second: tuple[Datatype, np.ndarray]) -> None:
    inputs: list[dict[str, Any]] = [{"name": "j", "shape": [1], "datatype": "INT8", "data": [5]}]
    tail = b""
    for name, (datatype, array) in (("a", first), ("b", second)):
        size = {"binary_data_size": array.nbytes}
        inputs.append({"name": name, "shape": array.shape, "datatype": datatype.value, "parameters": size})
        tail += array.tobytes()
    head = json.dumps({"inputs": inputs}).encode()
    plain, a, b = decode_request(head + tail, len(head)).inputs
    assert bytes(plain.data) == b"\x05"
    assert bytes(a.data) == first[1].tobytes()
    assert bytes(b.data) == second[1].tobytes()


def test_binary_inputs_are_views_over_the_body() -> None:
    head = json.dumps(a_request(data=None, parameters={"binary_data_size": 16})).encode()
    body = head + bytes(range(16))
    (tensor,) = decode_request(body, len(head)).inputs
    assert isinstance(tensor.data, memoryview)
    assert tensor.data.obj is body


@given(st.lists(st.text(max_size=8), max_size=6))
def test_strings_are_framed_as_bytes(texts: list[str]) -> None:
    (tensor,) = decode(a_request(shape=[len(texts)], datatype="BYTES", data=texts)).inputs
    assert unpack_bytes(tensor.data) == [text.encode() for text in texts]


@given(st.lists(st.binary(max_size=8), max_size=6))
def test_binary_bytes_arrive_as_they_were(elements: list[bytes]) -> None:
    data = pack_bytes(elements)
    document = a_request(shape=[len(elements)], datatype="BYTES", parameters={"binary_data_size": len(data)})
    del document["inputs"][0]["data"]
    (tensor,) = decode(document, data, None if not data else -1).inputs
    assert unpack_bytes(tensor.data) == elements


@given(arrays_of([*NUMBERS, Datatype.FP16]), arrays_of(NUMBERS))
def test_answers_round_trip_in_both_forms(
    binary: tuple[Datatype, np.ndarray], plain: tuple[Datatype, np.ndarray]
) -> None:
    tensors = [
        (Tensor("b", binary[0], binary[1].shape, binary[1].tobytes()), True),
        (Tensor("p", plain[0], plain[1].shape, plain[1].tobytes()), False),
    ]
    body, length = encode_answer(tensors, model_name="m", model_version="3", id="i", parameters={"variant": "v"})
    assert length is not None
    head = json.loads(body[:length])
    assert (head["model_name"], head["model_version"], head["id"]) == ("m", "3", "i")
    assert head["parameters"] == {"variant": "v"}
    first, second = head["outputs"]
    assert first["parameters"]["binary_data_size"] == binary[1].nbytes == len(body) - length
    assert body[length:] == binary[1].tobytes()
    found = np.array(second["data"], NUMPY[plain[0]]).reshape(second["shape"])
    np.testing.assert_array_equal(found, plain[1])


def test_nan_and_infinities_are_tritons_bare_words_both_ways() -> None:
    values = np.array([math.nan, math.inf, -math.inf, 1.5], np.float32)
    body, _ = encode_answer(
        [(Tensor("y", Datatype.FP32, (4,), values.tobytes()), False)], model_name="", model_version=""
    )
    assert b'"data":[NaN,Infinity,-Infinity,1.5]' in body
    text = b'{"inputs":[{"name":"x","shape":[4],"datatype":"FP32","data":[NaN, Infinity, -Infinity, 1.5]}]}'
    np.testing.assert_array_equal(as_array(decode_request(text).inputs[0]), values)
    nested = (
        text.replace(b"[4]", b"[2,2]").replace(b"[NaN, Infinity, ", b"[[NaN, Infinity], [").replace(b"1.5]", b"1.5]]")
    )
    np.testing.assert_array_equal(as_array(decode_request(nested).inputs[0]), values.reshape(2, 2))


def test_optional_fields_may_be_null() -> None:
    document = a_request() | {"id": None, "parameters": None, "outputs": None}
    document["inputs"][0]["parameters"] = None
    request = decode(document)
    assert (request.id, request.parameters, request.outputs) == ("", {}, ())


def test_outputs_say_how_they_want_to_be_sent() -> None:
    outputs = [
        {"name": "a"},
        {"name": "b", "parameters": {"binary_data": False}},
        {"name": "c", "parameters": {"classification": 2}},
    ]
    request = decode(a_request() | {"id": "7", "outputs": outputs, "parameters": {"binary_data_output": True}})
    assert request.outputs == (RequestedOutput("a"), RequestedOutput("b", False), RequestedOutput("c", None, 2))
    assert (request.id, request.binary_output) == ("7", True)


BAD_INPUTS = [
    (a_request(datatype="INT3"), "datatype 'INT3'; it must be one of BOOL, INT8"),
    (a_request(shape=[2, -2]), "shape [2, -2]; every dimension must be from 0"),
    (a_request(shape=[2**62, 2**62]), "every dimension must be from 0"),
    (a_request(shape=[1] * 17), "17 dimensions"),
    (a_request(shape=[2, 3]), "4 elements; shape [2, 3] takes 6"),
    (a_request(shape=[2, 2.5]), "Expected `int`, got `float` - at `$.inputs[0].shape[1]`"),
    (a_request(data=[1, 2, 3]), "3 elements; shape [2, 2] takes 4"),
    (a_request(data=[[1, 2], [3]]), "nested otherwise than its shape [2, 2]"),
    (a_request(data=[[1, 2, 3, 4]]), "nested otherwise than its shape [2, 2]"),
    (a_request(data=[[[1], [2]], [[3], [4]]]), "nested 3 deep"),
    (a_request(data=[1, [2], 3, 4]), "is INT32; its data do not fit: Expected `int`, got `array`"),
    (a_request(data=[1, 2.5, 3, 4]), "Expected `int`, got `float`"),
    (a_request(data=[1, True, 3, 4]), "Expected `int`, got `bool`"),
    (a_request(data=[1, None, 3, 4]), "Expected `int`, got `null`"),
    (a_request(data=[1, 2, 3, 2**31]), "outside the range of INT32"),
    (a_request(datatype="UINT8", data=[1, -2, 3, 4]), "outside the range of UINT8"),
    (a_request(datatype="UINT64", data=[1, 2, 3, 2**80]), "outside the range of UINT64"),
    (a_request(datatype="FP32", data=[1, 2, 3, 1e39]), "outside the range of FP32"),
    (a_request(datatype="FP16"), "FP16, which has no JSON form"),
    (a_request(datatype="BOOL", data=[1, 0, 1, 0]), "Expected `bool`, got `int`"),
    (a_request(datatype="BYTES", data=["a", 1, "b", "c"]), "Expected `str`, got `int`"),
    (a_request(data="abcd"), "'data' must be an array"),
    (a_request(data=5), "'data' must be an array"),
    (a_request(data=None), "neither 'data' nor the parameter 'binary_data_size'"),
    (a_request(parameters={"binary_data_size": 16}), "both 'data' and 'binary_data_size'"),
    (a_request(data=None, parameters={"binary_data_size": -1}), "must be a number of bytes, not -1"),
    (a_request(data=None, parameters={"binary_data_size": "16"}), "must be a number of bytes, not '16'"),
    (a_request(data=None, parameters={"binary_data_size": True}), "must be a number of bytes, not True"),
    (a_request(data=None, parameters={"binary_data_size": 16}), "says 16 bytes of binary data; 0 are left"),
    (a_request(parameters={"x": [1]}), "$.inputs[0].parameters"),
    ({"inputs": a_request()["inputs"] * 2}, "input 'x' is there twice"),
    (a_request() | {"outputs": [{"name": "y"}, {"name": "y"}]}, "output 'y' is there twice"),
    (
        a_request() | {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
        "'binary_data' must be true or false",
    ),
    (a_request() | {"outputs": [{"name": "y", "parameters": {"classification": -1}}]}, "'classification' must be"),
    (a_request() | {"parameters": {"binary_data_output": 1}}, "'binary_data_output' must be true or false"),
    (a_request() | {"id": 7}, "Expected `str | null`, got `int` - at `$.id`"),
    ({"input": []}, "missing required field `inputs`"),
    ([], "Expected `object`, got `array`"),
]


@pytest.mark.parametrize(("document", "words"), BAD_INPUTS, ids=[words for _, words in BAD_INPUTS])
def test_a_malformed_request_is_refused_in_words(document: Any, words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        decode(document)
    assert words in caught.value.text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "no body"),
        (b"{", "not JSON"),
        (b"{'inputs': []}", "not JSON"),
        (b'{"inputs": [NaN}', "not JSON"),
        (b"\xff\xfe", "JSON"),
        (b'{"inputs":[{"name":"\xff","shape":[1],"datatype":"INT8","data":[1]}]}', "UTF-8"),
        (b'{"inputs":[{"name":"x","shape":[1],"datatype":"BYTES","data":["\xff"]}]}', "UTF-8"),
        (b'{"inputs":' + b"[" * 100_000, "request"),
    ],
)
def test_a_body_that_is_not_json_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(InvalidError) as caught:
        decode_request(body)
    assert words in caught.value.text


@pytest.mark.parametrize(
    ("datatype", "shape", "tail", "words"),
    [
        ("INT32", [2, 2], bytes(15), "15 bytes of data; shape [2, 2] of INT32 takes 16"),
        ("BOOL", [2], b"\x01\x02", "BOOL; every byte must be 0 or 1"),
        ("BYTES", [2], struct.pack("<I", 1) + b"a", "5 bytes for 2 BYTES elements"),
        ("BYTES", [1], struct.pack("<I", 9) + b"a", "element 0 says 9 bytes, past the end"),
        ("BYTES", [2], struct.pack("<I", 4) + b"abcd", "ends after 1 of 2 BYTES elements"),
        ("BYTES", [1], struct.pack("<I", 1) + b"ab", "1 bytes after its 1 BYTES elements"),
    ],
)
def test_binary_data_of_another_size_than_its_shape_is_refused(
    datatype: str, shape: list[int], tail: bytes, words: str
) -> None:
    parameters = {"binary_data_size": len(tail)}
    with pytest.raises(InvalidError) as caught:
        decode(a_request(data=None, datatype=datatype, shape=shape, parameters=parameters), tail)
    assert words in caught.value.text


def test_bytes_that_no_input_names_are_refused() -> None:
    with pytest.raises(InvalidError, match="3 bytes follow the binary data"):
        decode(a_request(data=None, parameters={"binary_data_size": 16}), bytes(19))


def test_a_truncated_body_is_refused() -> None:
    with pytest.raises(InvalidError, match="says 16 bytes of binary data; 10 are left"):
        decode(a_request(data=None, parameters={"binary_data_size": 16}), bytes(10))


def test_a_header_length_past_the_body_is_refused() -> None:
    with pytest.raises(InvalidError, match="it must be from 0 to the body's"):
        decode(a_request(), b"", 10_000)


def test_shared_memory_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedError, match="'shared_memory_region'"):
        decode(a_request(data=None, parameters={"shared_memory_region": "r"}))
    with pytest.raises(UnsupportedError, match="'shared_memory_region'"):
        decode(a_request() | {"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]})


def test_a_raw_binary_request_is_one_item_of_the_only_input() -> None:
    request = decode_raw_request(bytes(24), [TensorSpec("x", Datatype.FP32, (-1, 2, -1))])
    assert request.inputs[0].shape == (1, 2, 3)
    assert request.binary_output
    text = decode_raw_request(b"hello", [TensorSpec("t", Datatype.BYTES, (-1, 1))])
    assert (text.inputs[0].shape, unpack_bytes(text.inputs[0].data)) == ((1, 1), [b"hello"])
    with pytest.raises(InvalidError, match="24 bytes of data"):
        decode_raw_request(bytes(24), [TensorSpec("x", Datatype.FP32, (-1, 5))])
    with pytest.raises(InvalidError, match="needs a model of one input"):
        decode_raw_request(b"", [TensorSpec("x", Datatype.FP32, (-1,)), TensorSpec("y", Datatype.FP32, (-1,))])


def test_outputs_that_json_cannot_hold_are_refused() -> None:
    for tensor, words in (
        (Tensor("y", Datatype.BYTES, (1,), pack_bytes([b"\xff"])), "not UTF-8"),
        (Tensor("y", Datatype.FP16, (1,), bytes(2)), "no JSON form"),
    ):
        with pytest.raises(InvalidError, match=words):
            encode_answer([(tensor, False)], model_name="", model_version="")


def test_inputs_are_held_against_the_task_and_all_problems_reported() -> None:
    specs = (TensorSpec("a", Datatype.FP32, (-1, 4)), TensorSpec("b", Datatype.INT32, (-1,)))
    good = (Tensor("b", Datatype.INT32, (2,), bytes(8)), Tensor("a", Datatype.FP32, (2, 4), bytes(32)))
    assert check_inputs(good, specs) == 2
    bad = (Tensor("a", Datatype.FP64, (2, 5), bytes(80)), Tensor("c", Datatype.INT8, (2,), bytes(2)))
    with pytest.raises(InvalidError) as caught:
        check_inputs(bad, specs)
    assert caught.value.problems == (
        "input 'a' is FP64; it must be FP32",
        "input 'a' has shape [2, 5]; it must be [-1, 4]",
        "unknown input 'c'; the inputs are 'a', 'b'",
        "input 'b' is missing",
    )


def test_items_must_agree_and_there_must_be_one() -> None:
    specs = (TensorSpec("a", Datatype.INT8, (-1,)), TensorSpec("b", Datatype.INT8, (-1,)))
    with pytest.raises(InvalidError, match="same number of items"):
        check_inputs((Tensor("a", Datatype.INT8, (1,), b"a"), Tensor("b", Datatype.INT8, (2,), b"ab")), specs)
    with pytest.raises(InvalidError, match="at least one item"):
        check_inputs((Tensor("a", Datatype.INT8, (0,), b""), Tensor("b", Datatype.INT8, (0,), b"")), specs)


def test_classification_gives_the_highest_with_index_and_label() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.25, 0.25]], np.float32)
    found = classify(Tensor("y", Datatype.FP32, (2, 3), scores.tobytes()), 2, ("cat", "dog"))
    assert (found.datatype, found.shape) == (Datatype.BYTES, (2, 2))
    assert unpack_bytes(found.data) == [b"0.700000:1:dog", b"0.200000:2", b"0.500000:0:cat", b"0.250000:1:dog"]
    whole = classify(Tensor("y", Datatype.INT8, (1, 2), b"\x01\x02"), 9, ())
    assert unpack_bytes(whole.data) == [b"2:1", b"1:0"]


@given(st.binary(max_size=64), st.integers(0, 64))
def test_no_body_whatever_breaks_the_reader(body: bytes, length: int) -> None:
    try:
        decode_request(body, length)
    except (InvalidError, UnsupportedError):
        return


def test_binary_data_of_an_answer_are_not_copied() -> None:
    tensor = Tensor("scores", Datatype.FP32, (2, 2), memoryview(bytes(16)))
    (head, data), length = answer_parts([(tensor, True)], model_name="m", model_version="1")
    assert data is tensor.data
    assert (len(head), encode_answer([(tensor, True)], model_name="m", model_version="1")) == (
        length,
        (bytes(head) + bytes(16), length),
    )


@given(st.lists(st.floats(), min_size=1, max_size=8), st.sampled_from([Datatype.FP32, Datatype.FP64]))
def test_few_numbers_and_many_are_read_and_written_alike(values: list[float], datatype: Datatype) -> None:
    many = values * (FEW // len(values) + 1)
    read: list[bytes | str] = []
    for data in (values, many):
        try:
            (tensor,) = decode(a_request(shape=[len(data)], datatype=datatype.value, data=data)).inputs
        except InvalidError as error:
            read.append(error.text)
            continue
        np.testing.assert_array_equal(as_array(tensor), np.array(data, NUMPY[datatype]))
        read.append(bytes(tensor.data)[: len(values) * datatype.itemsize])
        assert json.loads(encode_data(tensor))[: len(values)] == pytest.approx(
            np.array(values, NUMPY[datatype]).tolist(), nan_ok=True
        )
    assert read[0] == read[1]


@given(arrays_of([*NUMBERS, Datatype.FP16]), st.integers(1, 4))
def test_rows_that_are_written_at_once_read_as_those_written_one_by_one(
    made: tuple[Datatype, np.ndarray], count: int
) -> None:
    datatype, row = made
    data = [(row if place % 2 else np.flip(row)).tobytes() for place in range(count)]
    found = encode_rows(datatype, b"".join(data), count)
    has_words = datatype is not Datatype.FP16 and bool(np.isfinite(row).all())
    assert (found is not None) == (has_words and row.size > 0)
    if found is not None:
        assert list(found) == [encode_data(Tensor("y", datatype, row.shape, one)) for one in data]


def test_text_which_may_hold_what_stands_between_rows_is_written_one_by_one() -> None:
    assert encode_rows(Datatype.BYTES, pack_bytes([b"],[", b"b"]), 2) is None
