from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from infaas.client_tensors import (
    datatype_of,
    from_bytes,
    from_json,
    request_parts,
    response_arrays,
    to_bytes,
    to_dtype,
    to_json,
)
from infaas.domain.tensor import Datatype
from infaas.errors import InvalidError

DTYPES = ["?", "<i1", "<i2", "<i4", "<i8", "<u1", "<u2", "<u4", "<u8", "<f2", "<f4", "<f8", ">f4", ">i8"]
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        dtype,
        hnp.array_shapes(max_dims=3, max_side=4),
        elements={"allow_nan": False, "allow_infinity": False} if "f" in dtype else None,
    )
)


@given(ARRAYS)
def test_numbers_survive_bytes_and_json(array: np.ndarray) -> None:
    datatype = datatype_of(array)

    for back in (
        from_bytes(to_bytes(array), datatype, array.shape),
        from_json(json.loads(json.dumps(to_json(array))), datatype, array.shape),
    ):
        np.testing.assert_array_equal(back, array)
        assert datatype_of(back) is datatype


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
def test_strings_survive_bytes_and_json(texts: list[str]) -> None:
    array = np.array(texts, dtype=object)
    wanted = [text.encode() for text in texts]

    assert datatype_of(array) is Datatype.BYTES
    assert from_bytes(to_bytes(array), Datatype.BYTES, [len(texts)]).tolist() == wanted
    assert from_json(to_json(array), Datatype.BYTES, [len(texts)]).tolist() == wanted


def test_bytes_of_another_size_are_refused() -> None:
    with pytest.raises(InvalidError, match=r"7 bytes are not a FP32 tensor of shape \[2\]"):
        from_bytes(b"1234567", Datatype.FP32, [2])
    with pytest.raises(InvalidError, match="BYTES tensor"):
        from_bytes(b"\x05\x00\x00", Datatype.BYTES, [1])


def test_what_the_protocol_cannot_carry_is_refused() -> None:
    with pytest.raises(InvalidError, match="complex128"):
        datatype_of(np.array([1j]))


def test_a_conversion_that_would_change_whole_numbers_is_refused() -> None:
    assert to_dtype(np.array([1.0, 2.0]), Datatype.INT32).dtype == np.int32
    with pytest.raises(InvalidError, match="without change"):
        to_dtype(np.array([1.5]), Datatype.INT32)
    with pytest.raises(InvalidError, match="without change"):
        to_dtype(np.array([300]), Datatype.UINT8)
    with pytest.raises(InvalidError, match="do not fit FP32"):
        to_dtype(np.array(["x"]), Datatype.FP32)


def test_a_binary_request_carries_its_tensors_behind_the_json_in_order() -> None:
    body, raw = request_parts(
        {"a": np.array([[1, 2]], np.int32), "b": np.array([[3.0]], np.float32)}, ["y"], is_binary=True
    )

    assert body == {
        "inputs": [
            {"name": "a", "shape": [1, 2], "datatype": "INT32", "parameters": {"binary_data_size": 8}},
            {"name": "b", "shape": [1, 1], "datatype": "FP32", "parameters": {"binary_data_size": 4}},
        ],
        "outputs": [{"name": "y", "parameters": {"binary_data": True}}],
    }
    assert b"".join(raw) == b"\x01\0\0\0\x02\0\0\0\0\0\x40\x40"


def test_a_response_may_mix_binary_and_json_tensors() -> None:
    outputs = [
        {"name": "y", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}},
        {"name": "n", "datatype": "INT64", "shape": [2], "data": [1, 2]},
    ]

    arrays = response_arrays(outputs, b"\0\0\x40\x40")

    assert arrays["y"].tolist() == [[3.0]]
    assert arrays["n"].tolist() == [1, 2]
