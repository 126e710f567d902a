"""What goes over the wire: whole requests as bytes, made before the clock runs, and answers held against what is right.

While the clock runs an answer is a status and a length. Some answers are kept, with the number of their question, and
are compared afterwards: the first output's values, however they travelled.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from dataplane.graphs import INPUT, Array, Prepared
from infaas.bench.rest import query_bytes
from infaas.client_tensors import from_bytes
from infaas.domain.tensor import Datatype
from infaas.errors import InvalidError
from infaas.oip.v2 import grpc_service_pb2 as oip

TOLERANCE = 1e-3
"""Relative and absolute: rounding differs between batch sizes."""
_DECODER = json.JSONDecoder()
_END = b"\r\n\r\n"
_CLOSE = re.compile(rb"\r\n[Cc]onnection: *close\r\n")
_TOTAL = re.compile(r"total;dur=([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer to be compared: the question's number, the whole answer."""

    question: int
    content: bytes


class ForeignAnswerError(Exception):
    """An answer that this generator's reading is too simple for, or no answer at all."""


def requests(prepared: Prepared, path: str, *, is_binary: bool, headers: Mapping[str, str]) -> list[bytes]:
    """One whole request per question; `path` is put in the place of the protocol's own."""
    made = []
    for row in prepared.questions:
        whole = query_bytes(prepared.model.name, {INPUT: row[np.newaxis]}, headers, is_binary=is_binary)
        line, rest = whole.split(b"\r\n", 1)
        made.append(b"POST " + path.encode() + b" HTTP/1.1\r\n" + rest if path else line + b"\r\n" + rest)
    return made


def answer_length(data: bytes) -> int | None:
    """Bytes of the first answer in `data`, header and body; None while its header is not whole.

    Raises ForeignAnswerError when the answer does not state its length.
    """
    end = data.find(_END)
    if end < 0:
        return None
    at = data.find(b"\r\ncontent-length: ", 0, end)
    if at < 0:
        at = data.find(b"\r\nContent-Length: ", 0, end)
    if at < 0:
        raise ForeignAnswerError(f"an answer without its length: {data[:200]!r}")
    at += 18
    stop = data.find(b"\r", at)
    return end + 4 + int(data[at:stop])


def closes(answer: bytes) -> bool:
    """Whether the server says that the connection ends with it."""
    return _CLOSE.search(answer, 0, answer.find(_END) + 2) is not None


def refusal_of(answer: bytes) -> tuple[str, float]:
    """Why a query was refused, in the server's word, and how long that took by its own account, from when it had read
    the header; empty and negative where it does not say."""
    lines = answer.partition(_END)[0].decode("latin-1").split("\r\n")
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
    total = _TOTAL.search(fields.get("server-timing", ""))
    return fields.get("x-infaas-dropped-reason", ""), float(total[1]) / 1e3 if total else -1.0


def rest_output(answer: bytes) -> Array:
    """The first output's values, flat. Raises ForeignAnswerError when there is none."""
    _, _, body = answer.partition(_END)
    try:
        said, end = _DECODER.raw_decode(body.decode("latin-1"))  # a character a byte: what follows is binary
        output = said["outputs"][0]
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            return np.asarray(output["data"], dtype=np.float32).ravel()
        return np.asarray(from_bytes(body[end : end + size], Datatype.FP32, (-1,)), dtype=np.float32)
    except (ValueError, LookupError, TypeError, InvalidError) as error:
        raise ForeignAnswerError(f"not an answer: {body[:200]!r}") from error


def grpc_output(message: bytes) -> Array:
    """The same of a gRPC message."""
    try:
        answer = oip.ModelInferResponse.FromString(message)
        return np.frombuffer(answer.raw_output_contents[0], dtype=np.float32)
    except (DecodeError, LookupError, ValueError) as error:
        raise ForeignAnswerError(f"not an answer: {message[:200]!r}") from error


def wrong(kept: Sequence[Kept], expected: Array, read: Callable[[bytes], Array] = rest_output) -> list[str]:
    """What is wrong with the answers that were kept; empty when all are right."""
    found = []
    for one in kept:
        try:
            values = read(one.content)
        except ForeignAnswerError as error:
            found.append(f"question {one.question}: {error}")
            continue
        right = expected[one.question].ravel()
        if values.shape != right.shape or not np.allclose(values, right, rtol=TOLERANCE, atol=TOLERANCE):
            found.append(f"question {one.question}: {values[:4]} instead of {right[:4]}")
    return found
