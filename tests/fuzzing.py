"""What strangers may send, from nearly right to noise, and what must hold for each: a value, or an error in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from infaas.domain.query import Code
from infaas.domain.tensor import Datatype, Tensor
from infaas.errors import InfaasError
from infaas.oip.v2 import grpc_service_pb2 as pb
from infaas.rpc.edges import MAX_PROBLEMS, MAX_STATUS_BYTES, MAX_TEXT, edge_of, error_body, status_text
from infaas.rpc.requirements import REQUEST_HEADERS, Scalar
from infaas.rpc.tensors import NUMPY, as_array, element_count, unpack_bytes
from infaas.rpc.tensors_grpc import CONTENTS

CALLERS_FAULT = {Code.INVALID, Code.UNSUPPORTED, Code.TOO_LARGE}
MAX_BODY = 8 * MAX_TEXT * (MAX_PROBLEMS + 1)

half_a_pair = st.sampled_from(["\ud800", "a\udfffb"])
words = st.text(max_size=12) | half_a_pair | st.sampled_from(["x", "y", "", "\0", "NaN", "x" * 5000])
huge = st.sampled_from([2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, -(10**400)])
whole = st.integers(-3, 9) | huge
numbers = whole | st.floats()
scalars = st.none() | st.booleans() | numbers | words
junk = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(words, inner, max_size=3))
datatypes = st.sampled_from([d.value for d in Datatype]) | words
shapes = st.lists(st.integers(0, 4), max_size=3) | st.lists(whole, max_size=20) | junk


def or_junk(right: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(right, right, right, junk)


def without_some(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


parameters = st.dictionaries(
    st.sampled_from(
        ["binary_data_size", "binary_data", "classification", "shared_memory_region", "timeout", "slo_latency_ms"]
    )
    | words,
    scalars,
    max_size=3,
)
elements = st.lists(st.integers(0, 1), max_size=16) | st.lists(scalars, max_size=16) | junk


@st.composite
def inputs(draw: Any) -> dict[str, Any]:
    """Mostly an input whose data fit its shape, with one thing about it changed."""
    datatype = draw(st.sampled_from(list(Datatype)))
    shape = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    count = element_count(shape)
    value: Any = {Datatype.BOOL: True, Datatype.BYTES: "é"}.get(datatype, 1)
    one: dict[str, Any] = {"name": "x", "shape": shape, "datatype": datatype.value, "data": [value] * count}
    if draw(st.booleans()):
        del one["data"]
        one["parameters"] = {"binary_data_size": count * datatype.itemsize}
    changes = {"name": words, "shape": shapes, "datatype": datatypes, "data": elements, "parameters": parameters}
    changed = draw(st.sampled_from(["nothing", *changes]))
    if changed != "nothing":
        one[changed] = draw(or_junk(changes[changed]))
    return one


documents = without_some(
    {
        "inputs": or_junk(st.lists(inputs() | junk, max_size=3)),
        "outputs": or_junk(st.lists(without_some({"name": words, "parameters": parameters}) | junk, max_size=3)),
        "parameters": or_junk(parameters),
        "id": scalars,
    }
)


def as_body(document: Any) -> bytes:
    return json.dumps(document).encode()


nested = st.builds(
    lambda left, depth, right: left + b"[" * depth + right,
    st.sampled_from([b"", b'{"inputs":', b'{"inputs":[{"name":"x","shape":[1],"datatype":"INT8","data":']),
    st.integers(0, 3000),
    st.sampled_from([b"", b"]", b"NaN", b"]" * 3000 + b"}]}"]),
)
rest_bodies = st.one_of(st.binary(max_size=300), documents.map(as_body), documents.map(as_body), nested)


@st.composite
def damaged(draw: Any, bodies: st.SearchStrategy[bytes]) -> bytes:
    """With a piece cut out, doubled or overwritten."""
    body = draw(bodies)
    for _ in range(draw(st.integers(0, 3))):
        at, size = draw(st.integers(0, len(body))), draw(st.integers(0, 8))
        piece = draw(st.sampled_from([b"", b"\xff", b"\\ud800", b"NaN", b"-1", b"1e999", b'"', body[at : at + size]]))
        body = body[:at] + piece + body[at + size :]
    return body


@st.composite
def rest_requests(draw: Any) -> tuple[bytes, int | None]:
    """A body, and where its JSON ends by the header's word."""
    body = draw(damaged(rest_bodies))
    tail = draw(st.binary(max_size=40) | st.integers(0, 64).map(bytes))
    length = draw(st.none() | st.just(len(body)) | st.just(len(body)) | st.integers(0, 400))
    return (body if length is None else body + tail), length


@st.composite
def grpc_messages(draw: Any) -> Any:
    message = pb.ModelInferRequest(model_name=draw(st.text(max_size=5)), id=draw(st.text(max_size=200)))
    for _ in range(draw(st.integers(0, 3))):
        datatype = draw(st.sampled_from(list(Datatype)))
        shape = draw(st.lists(st.integers(0, 3), max_size=3) | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=20))
        name = draw(st.sampled_from(["x", "y"]) | st.text(max_size=4))
        one = message.inputs.add(name=name, datatype=draw(st.just(datatype.value) | st.text(max_size=4)), shape=shape)
        count = min(30, max(0, element_count(shape) + draw(st.sampled_from([0, 0, 0, 1, -1]))))
        field = draw(st.sampled_from([CONTENTS[datatype] or "fp32_contents", "int_contents", "bytes_contents"]))
        low = 0 if field.startswith("uint") else -(2**31)
        value: Any = b"ab" if field == "bytes_contents" else draw(st.integers(low, 2**31 - 1))
        if field in ("bool_contents", "fp32_contents", "fp64_contents"):
            value = {"bool_contents": True}.get(field, draw(st.floats(width=32)))
        if draw(st.booleans()):
            getattr(one.contents, field).extend([value] * count)
        if draw(st.booleans()):
            right = element_count(shape) * datatype.itemsize
            message.raw_input_contents.append(bytes(right) if 0 <= right < 500 else draw(st.binary(max_size=30)))
        _some_parameter(draw, one.parameters)
    for _ in range(draw(st.integers(0, 2))):
        _some_parameter(draw, message.outputs.add(name=draw(st.text(max_size=4))).parameters)
    _some_parameter(draw, message.parameters)
    return message


def _some_parameter(draw: Any, target: Any) -> None:
    if draw(st.booleans()):
        return
    name = draw(st.sampled_from(["classification", "binary_data", "shared_memory_region", "timeout"]) | st.text())
    field = draw(st.sampled_from(["bool_param", "int64_param", "string_param", "double_param", "uint64_param", ""]))
    value: Any = {
        "bool_param": True,
        "int64_param": draw(st.integers(-(2**63), 2**63 - 1)),
        "uint64_param": 2**64 - 1,
        "double_param": draw(st.floats()),
        "string_param": draw(st.text(max_size=300)),
    }.get(field)
    if field:
        setattr(target[name], field, value)
    else:
        target[name].SetInParent()


grpc_bytes = st.one_of(
    st.binary(max_size=200),
    damaged(grpc_messages().map(lambda message: bytes(message.SerializeToString()))),
)

header_texts = st.one_of(
    st.text(st.characters(max_codepoint=255), max_size=30),
    st.floats().map(str),
    st.integers().map(str),
    st.sampled_from(
        ["", " ", "nan", "-0.0", "1e400", "1_0", "٣", "0x10", "allow", "TRUE", "critical", "5, 5", "9" * 5000]
    ),
)
header_names = st.sampled_from([*REQUEST_HEADERS, "authorization"]) | st.text(
    st.characters(min_codepoint=33, max_codepoint=126), max_size=30
).map(lambda tail: f"x-infaas-{tail.lower()}")
headers = st.dictionaries(header_names, header_texts, max_size=6)
parameter_names = st.sampled_from(
    [
        "slo_latency_ms", "slo_accuracy_min", "max_cost", "objective", "priority", "fallback", "explain", "timeout",
        "sequence_id", "sequence_start", "slo_latency", "slo_" + "x" * 3000,
    ]
) | words  # fmt: skip
twins: st.SearchStrategy[dict[str, Scalar]] = st.dictionaries(
    parameter_names, st.booleans() | numbers | words | header_texts, max_size=6
)


def value_or_refusal(act: Callable[[], Any]) -> Any:
    """What `act` returns; None when it refused by an error that every edge can send. Anything else fails the test."""
    try:
        return act()
    except InfaasError as refusal:
        error = refusal
    assert error.code in CALLERS_FAULT, (error.code, error.text)
    assert error.text.strip()
    assert edge_of(error.code).http in (400, 413, 501)
    assert len(error_body(error, "r-1")) <= MAX_BODY
    said = status_text(error.text)
    assert 0 < len(said.encode()) <= MAX_STATUS_BYTES
    return None


def check_tensors(tensors: Sequence[Tensor]) -> None:
    """What every part behind the edge relies on."""
    for tensor in tensors:
        count = element_count(tensor.shape)
        assert all(size >= 0 for size in tensor.shape)
        if tensor.datatype is Datatype.BYTES:
            assert len(unpack_bytes(tensor.data)) == count
        else:
            assert len(tensor.data) == count * tensor.datatype.itemsize
            array = as_array(tensor)
            assert array.dtype == NUMPY[tensor.datatype]
            assert array.shape == tensor.shape
            assert array.dtype != np.bool_ or set(np.frombuffer(tensor.data, np.uint8).tolist()) <= {0, 1}
