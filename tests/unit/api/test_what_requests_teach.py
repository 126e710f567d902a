"""What a request taught is used for requests that differ in values alone, and finds in them what reading them would."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from infaas_controller.api.http_known import COPIED_BYTES, KnownBody, known
from infaas_controller.api.known import KNOWN_BYTES

from infaas.errors import InfaasError, InvalidError
from infaas.rpc.tensors import InferRequest
from infaas.rpc.tensors_json import decode_request
from infaas.testing.builders import a_query, a_task

TASK = a_task()


def taught(body: bytes, length: int | None = None) -> KnownBody | None:
    request = decode_request(body, length)
    return known(TASK, body, length, request, a_query(inputs=request.inputs))


def body_of(*data: object, datatype: str = "FP32", **more: object) -> bytes:
    inputs = [
        {"name": f"x{place}", "shape": [1, len(values)], "datatype": datatype, "data": values}
        for place, values in enumerate(data)
        if isinstance(values, list)
    ]
    return json.dumps({**more, "inputs": inputs}).encode()


def read(body: bytes) -> InferRequest | None:
    try:
        return decode_request(body)
    except InfaasError:
        return None


numbers = st.one_of(st.floats(width=32), st.integers(-(2**40), 2**40), st.booleans(), st.none(), st.text(max_size=3))


@given(st.lists(numbers, max_size=6), st.sampled_from(["FP32", "FP64", "INT32", "UINT8"]))
@example([1e39, 2, 3], "FP32")
@example([[1, 2, 3]], "FP32")
@example([float("nan"), 2, 3], "FP64")
def test_a_request_with_other_values_is_read_as_it_would_be_anew(values: list[object], datatype: str) -> None:
    learnt = taught(body_of([1, 2, 3], datatype=datatype, parameters={"priority": 1}))
    assert learnt is not None
    body = body_of(values, datatype=datatype, parameters={"priority": 1})
    body = body.replace(b'"shape": [1, %d]' % len(values), b'"shape": [1, 3]')
    anew = read(body)
    try:
        found = learnt.inputs(body)
    except InvalidError:
        assert anew is None
        return
    if found is not None:
        assert anew is not None
        assert found == anew.inputs
        assert (anew.id, learnt.request.parameters) == ("", anew.parameters)


@given(st.data())
def test_a_damaged_request_is_never_taken_for_another_one(data: st.DataObject) -> None:
    body = bytearray(body_of([1.5, 2.5, -3.5], parameters={"note": "[1.5, 2.5, -3.5]"}))
    learnt = taught(bytes(body))
    assert learnt is not None
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.sampled_from(b'[]{},:"0123456789.-e \\x'))
    try:
        found = learnt.inputs(bytes(body))
    except InvalidError:
        found = None
    if found is not None:
        anew = read(bytes(body))
        assert anew is not None
        assert (found, learnt.request.parameters, anew.id) == (anew.inputs, anew.parameters, "")


@pytest.mark.parametrize(
    "body",
    [
        body_of([1.0, 2.0], [3.0]),
        body_of([[1.0], [2.0]]).replace(b'"shape": [1, 2]', b'"shape": [2, 1]'),
        body_of(["a", "b"], datatype="BYTES"),
        body_of([True, False], datatype="BOOL"),
        body_of([1.0], extra={"data": [1.0]}),
        body_of([1.0], parameters={"note": "x" * KNOWN_BYTES}),
        body_of([1.0], id="another each time"),
        body_of([1.0], note={"data": [1.0]}).replace(b'"FP32", "data"', b'"FP32", "\\u0064ata"'),
    ],
    ids=["two inputs", "two rows", "bytes", "bool", "data twice", "much json", "id", "escaped"],
)
def test_what_is_not_one_array_of_numbers_teaches_nothing(body: bytes) -> None:
    assert taught(body) is None


def test_a_row_may_lie_in_as_many_arrays_as_its_shape_says() -> None:
    nested = body_of([[1.0, 2.0]]).replace(b'"shape": [1, 1]', b'"shape": [1, 2]')
    learnt = taught(nested)
    assert learnt is not None
    other = nested.replace(b"[1.0, 2.0]", b"[3, -4e1]")
    assert learnt.inputs(other) == decode_request(other).inputs
    assert learnt.inputs(nested.replace(b"[1.0, 2.0]", b"[3], [-4]")) is None


@pytest.mark.parametrize("before", [b"", b"what came before it"])
@pytest.mark.parametrize(
    ("sizes", "is_copied"),
    [
        ([2], True), ([2, 2], True), ([COPIED_BYTES], True), ([2, COPIED_BYTES], True),
        ([COPIED_BYTES + 1], False), ([2, COPIED_BYTES + 1], False),
    ],
)  # fmt: skip
def test_binary_inputs_are_found_where_they_lie_and_only_small_ones_are_copied(
    sizes: list[int], is_copied: bool, before: bytes
) -> None:
    inputs = [
        {"name": name, "shape": [1, size], "datatype": "UINT8", "parameters": {"binary_data_size": size}}
        for name, size in zip("ab", sizes, strict=False)
    ]
    head, total = json.dumps({"inputs": inputs}).encode(), sum(sizes)
    learnt = taught(head + bytes(total), len(head))
    assert learnt is not None
    values = [letter * size for letter, size in zip((b"e", b"g"), sizes, strict=False)]
    found = learnt.inputs(before + head + b"".join(values), len(before))
    assert found is not None
    assert [(tensor.name, bytes(tensor.data)) for tensor in found] == list(zip("ab", values, strict=False))
    assert all(isinstance(tensor.data, bytes) is is_copied for tensor in found)
    assert learnt.inputs(before + head + bytes(total + 1), len(before)) is None
    assert learnt.inputs(before + head.replace(b"UINT8", b"INT8 ") + bytes(total), len(before)) is None


def test_a_byte_that_is_no_truth_value_is_refused_as_when_it_was_read_first() -> None:
    head = json.dumps(
        {"inputs": [{"name": "a", "shape": [1, 2], "datatype": "BOOL", "parameters": {"binary_data_size": 2}}]}
    ).encode()
    learnt = taught(head + b"\0\1", len(head))
    assert learnt is not None
    with pytest.raises(InvalidError):
        learnt.inputs(head + b"\0\2")


def test_text_that_names_more_than_numbers_is_of_another_query() -> None:
    """It may state another priority, which nobody but who reads it knows."""
    body = body_of([1.0, 2.0])
    learnt = taught(body)
    assert learnt is not None
    assert learnt.inputs.suits(body.replace(b"1.0, 2.0", b"-3, 4e1"))
    more = b'1, 2]}], "parameters": {"priority": "critical"}, "outputs": [{"name": "y", "data": [3'
    assert not learnt.inputs.suits(body.replace(b"1.0, 2.0", more))
