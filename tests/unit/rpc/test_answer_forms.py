"""An answer by its form says, byte for byte, what writing it anew would."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infaas.domain.tensor import Datatype, Tensor
from infaas.errors import InvalidError
from infaas.rpc.answer_form import AnswerForm, NoFormError
from infaas.rpc.tensors_json import answer_parts

NUMBERS = {Datatype.FP32: "<f4", Datatype.FP64: "<f8", Datatype.INT64: "<i8", Datatype.UINT8: "u1", Datatype.BOOL: "?"}
names = st.text(min_size=1, max_size=8)


@st.composite
def answers(draw: st.DrawFn) -> tuple[list[tuple[Tensor, bool]], list[Tensor]]:
    """Two sets of outputs that differ in their values only, and how the first is sent."""
    shown: list[tuple[Tensor, bool]] = []
    others: list[Tensor] = []
    for name in draw(st.lists(names, min_size=1, max_size=3, unique=True)):
        datatype = draw(st.sampled_from(list(NUMBERS)))
        shape = (draw(st.integers(1, 2)), draw(st.integers(0, 4)))
        first, second = (_values(draw, datatype, shape) for _ in range(2))
        shown.append((Tensor(name, datatype, shape, first), draw(st.booleans())))
        others.append(Tensor(name, datatype, shape, second))
    return shown, others


def _values(draw: st.DrawFn, datatype: Datatype, shape: tuple[int, ...]) -> bytes:
    count = int(np.prod(shape))
    raw = draw(st.binary(min_size=count * datatype.itemsize, max_size=count * datatype.itemsize))
    return np.frombuffer(raw, "u1").astype("?").tobytes() if datatype is Datatype.BOOL else raw


@given(answers(), names, st.text(max_size=6))
def test_an_answer_by_its_form_is_what_writing_it_anew_gives(
    answer: tuple[list[tuple[Tensor, bool]], list[Tensor]], model: str, variant: str
) -> None:
    shown, others = answer
    common: dict[str, Any] = {"model_name": model, "model_version": "3"}
    try:
        form = AnswerForm(shown, parameters={"decision_id": "d-c-1", "variant": variant, "slo_met": True}, **common)
    except NoFormError:
        assert "\0" in model + variant + "".join(tensor.name for tensor, _ in shown)
        return
    parameters = {"decision_id": "d-c-27", "variant": variant, "slo_met": True}
    anew = [(tensor, is_binary) for tensor, (_, is_binary) in zip(others, shown, strict=True)]
    parts, length = answer_parts(anew, parameters=parameters, **common)
    assert form.fits(others)
    by_form, form_length = form.parts(others, "d-c-27")
    assert b"".join(by_form) == b"".join(parts)
    assert form_length == length


def one(name: str = "y", datatype: Datatype = Datatype.FP32, shape: tuple[int, ...] = (1, 2)) -> Tensor:
    return Tensor(name, datatype, shape, bytes(8))


@pytest.mark.parametrize(
    "others",
    [[], [one("z")], [one(shape=(2, 1))], [one(datatype=Datatype.INT32)], [one(), one("z")]],
    ids=["none", "name", "shape", "datatype", "more"],
)
def test_outputs_of_another_kind_do_not_fit(others: list[Tensor]) -> None:
    form = AnswerForm([(one(), True)], model_name="m", model_version="1", parameters={"decision_id": "d-1"})
    assert form.fits([one()])
    assert not form.fits(others)


@pytest.mark.parametrize(
    ("tensor", "decision"),
    [(Tensor("y", Datatype.BYTES, (1,), b"\1\0\0\0a"), "d-1"), (one(), 'd-"1'), (one(), "d-\u00e9\\")],
    ids=["bytes", "quote", "backslash"],
)
def test_what_has_no_form_is_said_to_have_none(tensor: Tensor, decision: str) -> None:
    with pytest.raises(NoFormError):
        AnswerForm([(tensor, False)], model_name="m", model_version="1", parameters={"decision_id": decision})


def test_what_json_cannot_carry_is_refused_by_a_form_as_well() -> None:
    half = Tensor("y", Datatype.FP16, (1, 4), bytes(8))
    form = AnswerForm([(half, False)], model_name="m", model_version="1", parameters={"decision_id": "d-1"})
    with pytest.raises(InvalidError, match="FP16"):
        form.parts([half], "d-2")
