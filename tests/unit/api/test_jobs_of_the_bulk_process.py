"""What the bulk process says of a job that fails: the caller's fault in words, ours with details for the log."""

from __future__ import annotations

import json
from typing import Any

import pytest
from infaas_controller.api.bulk import process, wire

from infaas.domain.query import Code
from infaas.domain.tensor import Datatype, Tensor
from infaas.rpc.edges import HIDDEN_TEXT


def failed(asked: wire.Job, data: bytes) -> wire.Failed:
    reply, made = process.perform(wire.encode(asked), (memoryview(data),))
    found = wire.reply_decoder.decode(reply)
    assert isinstance(found, wire.Failed)
    assert not made
    return found


def overflow(*_: Any) -> None:
    raise OverflowError("Python int too large to convert to C long")


def test_a_number_that_no_reply_can_carry_is_the_callers_fault() -> None:
    row = {"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]}
    found = failed(wire.ReadRest(None), json.dumps({"inputs": [row], "parameters": {"mine": 10**30}}).encode())
    assert (found.code, found.details) == (Code.INVALID.value, "")
    assert "outside the range of INT64" in found.text


@pytest.mark.parametrize("part", ["decode_rest", "encode_data"])
def test_an_overflow_anywhere_else_is_ours_and_its_details_are_for_the_log(
    monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(process, part, overflow)
    tensor = Tensor("x", Datatype.FP32, (1,), bytes(4))
    found = failed(wire.ReadRest(None) if part == "decode_rest" else wire.Render(wire.outline(tensor)), bytes(4))
    assert (found.code, found.text) == (Code.INTERNAL.value, HIDDEN_TEXT)
    assert "OverflowError" in found.details
