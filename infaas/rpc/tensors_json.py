"""REST's form of a request and an answer: JSON, the binary tensor extension, and any mix of the two.

Binary inputs are views over the body. NaN and infinities, which JSON has no words for, are read and written as the
bare `NaN`, `Infinity` and `-Infinity` that Triton, Python and RapidJSON use; ask for binary data to keep them out of
a strict parser's way. FP16 has no JSON form (Triton's rule) and must travel as binary data.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

from infaas.domain.tensor import Datatype, Tensor, TensorSpec
from infaas.errors import InvalidError
from infaas.rpc.requirements import Scalar
from infaas.rpc.tensors import (
    FLOATS,
    MAX_RANK,
    NUMPY,
    InferRequest,
    RequestedOutput,
    check_bytes_count,
    check_count,
    checked_shape,
    datatype_of,
    distinct,
    element_count,
    pack_bytes,
    raw_tensor,
    refuse_shared_memory,
    requested_output,
    unpack_bytes,
)

FEW = 256
"""Up to so many elements the standard library is quicker than arrays are made."""
_FLOAT_CODES = {Datatype.FP32: "f", Datatype.FP64: "d"}
_SPACE = frozenset(b" \t\r\n")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


_NO_DATA = msgspec.Raw()


class _Input(msgspec.Struct, frozen=True):
    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Scalar] | None = None
    data: msgspec.Raw = _NO_DATA


class _Output(msgspec.Struct, frozen=True):
    name: str
    parameters: dict[str, Scalar] | None = None


class _Request(msgspec.Struct, frozen=True):
    inputs: list[_Input]
    id: str | None = None
    parameters: dict[str, Scalar] | None = None
    outputs: list[_Output] | None = None


class _LooseInput(_Input, frozen=True):
    """An input whose data was already parsed by the lenient reader."""

    data: Any = None


class _LooseRequest(_Request, frozen=True):
    inputs: list[_LooseInput]  # type: ignore[assignment]


class _AnswerOutput(msgspec.Struct, frozen=True, omit_defaults=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Scalar] = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    model_name: str
    model_version: str
    outputs: list[_AnswerOutput]
    id: str = ""
    parameters: Mapping[str, Scalar] = {}


_decoder = msgspec.json.Decoder(_Request)
_encoder = msgspec.json.Encoder()


def decode_request(body: bytes | memoryview, header_length: int | None = None) -> InferRequest:
    """`header_length` is `Inference-Header-Content-Length`: the JSON's part of the body; None: all of it.

    Raises InvalidError for everything that does not fit, UnsupportedError for shared memory.
    """
    view = memoryview(body)
    if header_length is None:
        head, tail = view, view[len(view) :]
    else:
        if not 0 <= header_length <= len(view):
            raise InvalidError(
                f"header 'inference-header-content-length' is {header_length}; it must be from 0 to the body's "
                f"{len(view)} bytes"
            )
        head, tail = view[:header_length], view[header_length:]
    request = _parse(head)
    outputs, parameters = request.outputs or [], request.parameters or {}
    for kind, found in (("inputs", request.inputs), ("outputs", outputs), ("parameters", parameters)):
        check_count(kind, len(found))
    distinct("input", (one.name for one in request.inputs))
    distinct("output", (one.name for one in outputs))
    return InferRequest(
        inputs=_inputs(request.inputs, tail),
        outputs=tuple(requested_output(one.name, one.parameters or {}) for one in outputs),
        id=request.id or "",
        parameters=parameters,
        binary_output=_flag("binary_data_output", parameters),
    )


def decode_raw_request(body: bytes | memoryview, specs: Sequence[TensorSpec]) -> InferRequest:
    """Triton's raw binary request (header length 0): the body is the one input's bytes, and one item of it."""
    if len(specs) != 1:
        raise InvalidError(
            "a raw binary request (inference-header-content-length: 0) needs a model of one input; "
            f"this has {len(specs)}"
        )
    spec = specs[0]
    if spec.datatype is Datatype.BYTES:
        framed = pack_bytes([bytes(body)])
        return InferRequest((raw_tensor(spec.name, spec.datatype, (1,) * len(spec.shape), framed),), binary_output=True)
    dims = list(spec.shape[1:])
    free = [index for index, dim in enumerate(dims) if dim == -1]
    if len(free) > 1:
        raise InvalidError(f"input {spec.name!r} has more than one free dimension; send its shape in a JSON header")
    if free:
        rest = element_count([dim for dim in dims if dim != -1]) * spec.datatype.itemsize
        dims[free[0]] = len(body) // rest if rest else 0
    tensor = raw_tensor(spec.name, spec.datatype, (1, *dims), memoryview(body))
    return InferRequest((tensor,), binary_output=True)


def encode_answer(
    tensors: Sequence[tuple[Tensor, bool]],
    *,
    model_name: str,
    model_version: str,
    id: str = "",
    parameters: Mapping[str, Scalar] | None = None,
    rendered: Mapping[str, bytes | memoryview] | None = None,
) -> tuple[bytes, int | None]:
    """`answer_parts` in one piece."""
    parts, length = answer_parts(
        tensors, model_name=model_name, model_version=model_version, id=id, parameters=parameters, rendered=rendered
    )
    return b"".join(parts), length


def answer_parts(
    tensors: Sequence[tuple[Tensor, bool]],
    *,
    model_name: str,
    model_version: str,
    id: str = "",
    parameters: Mapping[str, Scalar] | None = None,
    rendered: Mapping[str, bytes | memoryview] | None = None,
) -> tuple[list[bytes | memoryview], int | None]:
    """The body in the pieces that it consists of, and the length of its JSON part when binary data follows. `tensors`
    says for each whether as binary; `rendered` holds the data of those whose JSON was made elsewhere (`encode_data`).

    Raises InvalidError for BYTES that are not UTF-8, or FP16, asked for as JSON.
    """
    outputs: list[_AnswerOutput] = []
    buffers: list[bytes | memoryview] = []
    for tensor, is_binary in tensors:
        if is_binary:
            buffers.append(tensor.data)
            size: dict[str, Scalar] = {"binary_data_size": len(tensor.data)}
            outputs.append(_AnswerOutput(tensor.name, tensor.datatype.value, tensor.shape, size))
        else:
            ready = None if rendered is None else rendered.get(tensor.name)
            data = msgspec.Raw(encode_data(tensor) if ready is None else ready)
            outputs.append(_AnswerOutput(tensor.name, tensor.datatype.value, tensor.shape, data=data))
    head = _encoder.encode(_Answer(model_name, model_version, outputs, id, parameters or {}))
    return [head, *buffers], len(head) if buffers else None


def framed_elements(head: bytes | memoryview) -> int:
    """The most elements that a BYTES input in binary claims; 0 for a head that is none, which its reader refuses."""
    try:
        request = _decoder.decode(head)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 0
    counts = (
        element_count(one.shape)
        for one in request.inputs
        if one.datatype == Datatype.BYTES.value and len(one.shape) <= MAX_RANK
    )
    return max(counts, default=0)


def json_refusal(datatype: Datatype, output: str) -> InvalidError | None:
    """Why an output cannot be sent as JSON, if it cannot; asked before any work is done for it."""
    if datatype is Datatype.FP16:
        return InvalidError(f"output {output!r} is FP16, which has no JSON form; ask for it with 'binary_data': true")
    return None


def is_binary(output: RequestedOutput | None, request: InferRequest) -> bool:
    return request.binary_output if output is None or output.binary is None else output.binary


def _parse(head: memoryview) -> _Request:
    if not len(head):
        raise InvalidError("the request has no body; it must be a JSON object with 'inputs'")
    try:
        return _decoder.decode(head)
    except msgspec.ValidationError as error:
        raise InvalidError(f"request: {error}") from None
    except UnicodeDecodeError as error:
        raise InvalidError(f"the request is not UTF-8: {error.reason}") from None
    except RecursionError:
        raise InvalidError("the request is nested too deeply") from None
    except msgspec.DecodeError as error:
        text = bytes(head)
        if b"NaN" not in text and b"Infinity" not in text:
            raise InvalidError(f"the request is not JSON: {error}") from None
    return _parse_lenient(text)


def _parse_lenient(text: bytes) -> _Request:
    """For bodies that hold NaN or infinities, which the fast reader rightly takes for malformed JSON."""
    try:
        loaded = json.loads(text)
        if _SURROGATE.search(text):  # half a pair is no character: this reader lets it pass, no writer does
            json.dumps(loaded, ensure_ascii=False).encode()
        return msgspec.convert(loaded, _LooseRequest)
    except msgspec.ValidationError as error:
        raise InvalidError(f"request: {error}") from None
    except RecursionError:
        raise InvalidError("the request is nested too deeply") from None
    except ValueError as error:
        raise InvalidError(f"the request is not JSON: {error}") from None


def _inputs(inputs: Sequence[_Input], tail: memoryview) -> tuple[Tensor, ...]:
    tensors: list[Tensor] = []
    offset = 0
    for one in inputs:
        datatype = datatype_of(one.name, one.datatype)
        shape = checked_shape(one.name, one.shape)
        parameters = one.parameters or {}
        refuse_shared_memory("input", one.name, parameters)
        size = parameters.get("binary_data_size")
        if size is None:
            tensors.append(_json_tensor(one, datatype, shape))
            continue
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise InvalidError(
                f"input {one.name!r}: parameter 'binary_data_size' must be a number of bytes, not {size!r}"
            )
        if _has_data(one):
            raise InvalidError(f"input {one.name!r} has both 'data' and 'binary_data_size'; one of them must go")
        if size > len(tail) - offset:
            raise InvalidError(
                f"input {one.name!r} says {size} bytes of binary data; {len(tail) - offset} are left in the body "
                "(the header 'inference-header-content-length' says where they start)"
            )
        tensors.append(raw_tensor(one.name, datatype, shape, tail[offset : offset + size]))
        offset += size
    if offset != len(tail):
        raise InvalidError(f"{len(tail) - offset} bytes follow the binary data that the inputs name")
    return tuple(tensors)


def _has_data(one: _Input) -> bool:
    """`null` is as good as none."""
    if isinstance(one.data, msgspec.Raw):
        return len(memoryview(one.data)) > 0 and bytes(memoryview(one.data)[:4]) != b"null"
    return one.data is not None


def _json_tensor(one: _Input, datatype: Datatype, shape: tuple[int, ...]) -> Tensor:
    if not _has_data(one):
        raise InvalidError(f"input {one.name!r} has neither 'data' nor the parameter 'binary_data_size'")
    if datatype is Datatype.FP16:
        raise InvalidError(f"input {one.name!r} is FP16, which has no JSON form; send it as binary data")
    flat = _flat_data(one.name, one.data, datatype, shape)
    if len(flat) != element_count(shape):
        raise InvalidError(
            f"input {one.name!r} has {len(flat)} elements; shape {list(shape)} takes {element_count(shape)}"
        )
    if datatype is Datatype.BYTES:
        check_bytes_count(one.name, len(flat))
        return Tensor(one.name, datatype, shape, pack_bytes(element.encode() for element in flat))
    return Tensor(one.name, datatype, shape, _packed(one.name, flat, datatype))


def _flat_data(name: str, data: Any, datatype: Datatype, shape: tuple[int, ...]) -> list[Any]:
    """Row-major elements of data that is either flat or nested exactly as the shape says."""
    depth = _depth(data)
    if depth == 0:
        raise InvalidError(f"input {name!r}: 'data' must be an array")
    if depth > 1 and depth != len(shape):
        raise InvalidError(
            f"input {name!r} is nested {depth} deep; it must be flat or as deep as its shape {list(shape)}"
        )
    try:
        if isinstance(data, msgspec.Raw):
            nested = _data_decoder(_element(datatype), depth).decode(data)
        else:
            nested = msgspec.convert(data, _nested(_element(datatype), depth))
    except msgspec.MsgspecError as error:
        raise InvalidError(f"input {name!r} is {datatype.value}; its data do not fit: {error}") from None
    except UnicodeDecodeError as error:
        raise InvalidError(f"input {name!r} is not UTF-8: {error.reason}") from None
    if depth == 1:
        return list(nested)
    for level in range(depth - 1):
        if level == 0 and len(nested) != shape[0]:
            raise InvalidError(f"input {name!r} is nested otherwise than its shape {list(shape)}")
        if any(len(row) != shape[level + 1] for row in nested):
            raise InvalidError(f"input {name!r} is nested otherwise than its shape {list(shape)}")
        nested = list(itertools.chain.from_iterable(nested))
    return list(nested)


def flat_array(name: str, text: bytes | memoryview, datatype: Datatype, count: int) -> bytes | None:
    """The elements of an input whose JSON is this text, which is a flat array of so many numbers; None when it is
    anything else. Raises InvalidError for a number that its datatype cannot hold."""
    try:
        flat = _data_decoder(_element(datatype), 1).decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    return _packed(name, flat, datatype) if len(flat) == count else None


def _depth(data: Any) -> int:
    if isinstance(data, msgspec.Raw):
        depth = 0
        for byte in bytes(memoryview(data)[: 4 * MAX_RANK + 4]):
            if byte == 0x5B:
                depth += 1
            elif byte not in _SPACE:
                break
        return depth
    depth = 0
    while isinstance(data, list):
        depth += 1
        if not data:
            break
        data = data[0]
    return depth


def _element(datatype: Datatype) -> type:
    if datatype is Datatype.BYTES:
        return str
    if datatype is Datatype.BOOL:
        return bool
    return float if datatype in FLOATS else int


def _nested(element: type, depth: int) -> Any:
    kind: Any = element
    for _ in range(depth):
        kind = list[kind]
    return kind


@lru_cache(maxsize=128)
def _data_decoder(element: type, depth: int) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(_nested(element, depth))


def _packed(name: str, flat: list[Any], datatype: Datatype) -> bytes:
    if len(flat) <= FEW and (code := _FLOAT_CODES.get(datatype)) is not None:
        try:
            return struct.pack(f"<{len(flat)}{code}", *flat)
        except OverflowError:
            raise InvalidError(f"input {name!r} has a value outside the range of {datatype.value}") from None
    dtype = NUMPY[datatype]
    try:
        with np.errstate(over="ignore"):
            array = np.array(flat, dtype=dtype)
    except (OverflowError, TypeError):
        raise InvalidError(f"input {name!r} has a value outside the range of {datatype.value}") from None
    if datatype is Datatype.FP32 and not np.isfinite(array).all() and not _same_infinities(flat, array):
        raise InvalidError(f"input {name!r} has a value outside the range of FP32")
    return array.tobytes()


def _same_infinities(flat: list[Any], array: np.ndarray[Any, Any]) -> bool:
    """Whether everything that is infinite or NaN as FP32 was so in the request too."""
    return bool((np.isfinite(np.array(flat, dtype=np.float64)) == np.isfinite(array)).all())


def encode_data(tensor: Tensor) -> bytes:
    """The JSON array of a tensor's elements. Raises InvalidError for what JSON has no form for."""
    if tensor.datatype is Datatype.BYTES:
        try:
            return _encoder.encode([element.decode() for element in unpack_bytes(tensor.data)])
        except UnicodeDecodeError:
            raise InvalidError(
                f"output {tensor.name!r} holds bytes that are not UTF-8; ask for it with 'binary_data': true"
            ) from None
    refusal = json_refusal(tensor.datatype, tensor.name)
    if refusal is not None:
        raise refusal
    code = _FLOAT_CODES.get(tensor.datatype)
    if code is not None and len(tensor.data) <= FEW * tensor.datatype.itemsize:
        few = struct.unpack(f"<{len(tensor.data) // tensor.datatype.itemsize}{code}", tensor.data)
        return _encoder.encode(few) if all(map(math.isfinite, few)) else _with_infinities(few)
    array = np.frombuffer(tensor.data, NUMPY[tensor.datatype])
    values = array.tolist()
    if tensor.datatype in FLOATS and not np.isfinite(array).all():
        return _with_infinities(values)
    return _encoder.encode(values)


def encode_rows(datatype: Datatype, data: bytes | memoryview, count: int) -> Sequence[bytes] | None:
    """As `encode_data`, of so many tensors of equal size that lie one after the other. None: each is to be written by
    itself, because it is text, or holds what JSON has no word for, or nothing."""
    if datatype in (Datatype.BYTES, Datatype.FP16) or count < 1 or not len(data):
        return None
    array = np.frombuffer(data, NUMPY[datatype])
    if datatype in FLOATS and not np.isfinite(array).all():
        return None
    rows = _encoder.encode(array.reshape(count, -1).tolist())
    return [b"[%b]" % row for row in rows[2:-2].split(b"],[")]


def _with_infinities(values: Sequence[float]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


def _flag(name: str, parameters: Mapping[str, Scalar]) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise InvalidError(f"parameter {name!r} must be true or false, not {value!r}")
    return value
