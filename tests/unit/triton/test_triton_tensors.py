"""Rows as bytes: joining, cutting and casting keep every value where it belongs."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infaas.domain.tensor import Datatype
from infaas.errors import InvalidError, ModelError
from infaas.triton.tensors import Raw, cast, check, cut, join

COUNTS = st.lists(st.integers(1, 5), min_size=1, max_size=6)


def fp32(*shape: int) -> Raw:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    return Raw(shape, array.tobytes())


def texts(rows: list[list[bytes]]) -> Raw:
    data = b"".join(struct.pack("<I", len(text)) + text for row in rows for text in row)
    return Raw((len(rows), len(rows[0])), data)


@given(COUNTS, st.integers(0, 4))
def test_cutting_what_was_joined_gives_the_parts_back(counts, columns):
    parts = [fp32(count, columns) for count in counts]
    whole = join("x", parts)
    assert whole.shape == (sum(counts), columns)
    again = cut("x", Datatype.FP32, whole, counts)
    assert [(part.shape, bytes(part.data)) for part in again] == [(part.shape, bytes(part.data)) for part in parts]


@given(st.lists(st.lists(st.binary(max_size=9), min_size=2, max_size=2), min_size=1, max_size=6))
def test_texts_of_any_length_are_cut_at_the_right_places(rows):
    parts = cut("x", Datatype.BYTES, texts(rows), [1] * len(rows))
    assert [bytes(part.data) for part in parts] == [bytes(texts([row]).data) for row in rows]


def test_rows_of_different_shapes_do_not_join():
    with pytest.raises(InvalidError, match=r"shapes \[1, 4\], \[1, 5\] do not go"):
        join("x", [fp32(1, 4), fp32(1, 5)])


@pytest.mark.parametrize(
    ("raw", "datatype", "fact"),
    [
        (Raw((1, 4), bytes(15)), Datatype.FP32, "takes 16 bytes, got 15"),
        (Raw((1, 1), b"\x05\x00\x00\x00ab"), Datatype.BYTES, "claims 5 bytes, only 2 follow"),
        (Raw((1, 1), b"\x00"), Datatype.BYTES, "ends after 0"),
        (Raw((1, 1), b"\x00\x00\x00\x00!"), Datatype.BYTES, "1 bytes follow the last"),
    ],
)
def test_bytes_that_do_not_fill_the_shape_are_refused(raw, datatype, fact):
    with pytest.raises(InvalidError, match=fact):
        check("x", datatype, raw)


def test_an_answer_that_does_not_fill_its_shape_is_the_models_fault():
    with pytest.raises(ModelError, match="came with 12 bytes"):
        cut("y", Datatype.FP32, Raw((1, 4), bytes(12)), [1])


def test_casting_keeps_the_values():
    raw = Raw((2, 2), np.array([[0.5, -1], [2, 65504]], np.float32).tobytes())
    half = cast(raw, Datatype.FP32, Datatype.FP16)
    assert np.frombuffer(half.data, np.float16).tolist() == [0.5, -1, 2, 65504]
    assert cast(raw, Datatype.FP32, Datatype.FP32) is raw


def test_the_greatest_score_becomes_the_label():
    raw = Raw((2, 3), np.array([[0.1, 0.7, 0.2], [5, 1, 1]], np.float32).tobytes())
    label = cast(raw, Datatype.FP32, Datatype.INT64, is_argmax=True)
    assert (label.shape, np.frombuffer(label.data, np.int64).tolist()) == ((2,), [1, 0])
