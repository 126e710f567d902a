"""Bad input over REST: each case with the status, the slug and the words that its caller must get."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raw_callers import body_of, request_bytes

INFER = "/v2/models/simple/infer"
BINARY = "inference-header-content-length"


@dataclass(frozen=True)
class Case:
    """`pieces` go over a connection of their own. `status` "": the connection ends without an answer."""

    name: str
    pieces: Callable[[], Sequence[bytes]]
    status: str
    code: str
    words: tuple[str, ...]


def case(
    name: str,
    status: int,
    code: str,
    *said: str,
    body: Any = None,
    path: str = INFER,
    method: str = "POST",
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = (),
    has_length: bool = True,
    has_credential: bool = True,
) -> Case:
    def pieces() -> Sequence[bytes]:
        raw = body if isinstance(body, bytes) else json.dumps(body_of() if body is None else body).encode()
        return [
            request_bytes(method, path, raw, headers, has_length=has_length, has_credential=has_credential)
        ]  # fmt: skip

    return Case(name, pieces, str(status), code, said)


def invalid(name: str, *said: str, status: int = 400, **request: Any) -> Case:
    return case(name, status, "invalid-argument", *said, **request)


def wire(name: str, status: int, code: str, *said: str, data: bytes) -> Case:
    return Case(name, lambda: [data], str(status), code, said)


def binary(name: str, *said: str, tail: bytes, length: int | None = None, **change: Any) -> Case:
    document = body_of(parameters={"binary_data_size": 64}, **change)
    del document["inputs"][0]["data"]
    head = json.dumps(document).encode()
    return invalid(name, *said, body=head + tail, headers={BINARY: str(len(head) if length is None else length)})


def one(**change: Any) -> dict[str, Any]:
    return body_of(**change)


def bytes_tensor(tail: bytes, count: int) -> dict[str, Any]:
    head = {
        "inputs": [
            {"name": "INPUT0", "shape": [1, count], "datatype": "BYTES", "parameters": {"binary_data_size": len(tail)}}
        ]
    }
    raw = json.dumps(head).encode()
    return {"body": raw + tail, "headers": {BINARY: str(len(raw))}}


def slo(name: str, header: str, value: str, right: str) -> Case:
    return invalid(name, f"header '{header}' must be {right}", headers={header: value})


LATENCY, ACCURACY, COST = "x-infaas-slo-latency-ms", "x-infaas-slo-accuracy-min", "x-infaas-max-cost"
POSITIVE_MS = "a number of milliseconds above 0"

BODIES = (
    invalid("no body", "the request has no body", body=b""),
    invalid("no content length", "the request has no body", body=b"", has_length=False),
    invalid("malformed JSON", "the request is not JSON", body=b'{"inputs": [}'),
    invalid("not UTF-8", "not UTF-8", body=b'{"inputs": [{"name": "\xff\xfe"}]}'),
    invalid("JSON of another kind", "Expected `object`, got `array`", body=b"[1, 2]"),
    invalid("100,000 levels of nesting", "nested too deeply",
            body=b'{"inputs": [{"name": "INPUT0", "shape": [1], "datatype": "INT32", "data": ' + b"[" * 100_000),
    invalid("nested data", "nested", body=one(data=[[[1]]])),
    invalid("half a surrogate pair", "JSON", body=b'{"id": "\\ud800", "inputs": [NaN]}'),
    invalid("no inputs", "missing required field `inputs`", body={"id": "1"}),
    invalid("an unknown input", "unknown input 'X'; the inputs are 'INPUT0', 'INPUT1'", body=one(name="X")),
    invalid("a duplicate input", "input 'INPUT1' is there twice", body=one(name="INPUT1")),
    invalid("an unknown output", "unknown output 'Z'", body=body_of() | {"outputs": [{"name": "Z"}]}),
    invalid("a duplicate output", "'OUTPUT0' is there twice", body=body_of() | {"outputs": [{"name": "OUTPUT0"}] * 2}),
    invalid("an unknown datatype", "'INT31'; it must be one of BOOL", body=one(datatype="INT31")),
    invalid("another datatype", "'INPUT0' is INT64; it must be INT32", body=one(datatype="INT64")),
    invalid("FP16 in JSON", "FP16, which has no JSON form; send it as binary", body=one(datatype="FP16")),
    invalid("a negative dimension", "[1, -16]; every dimension must be from 0", body=one(shape=[1, -16])),
    invalid("a dimension of 0", "at least one item", body={
        "inputs": [{"name": n, "shape": [0, 16], "datatype": "INT32", "data": []} for n in ("INPUT0", "INPUT1")]
    }),
    invalid("a dimension past 2^31", "every dimension must be from 0 to 2147483647", body=one(shape=[1, 2**31])),
    invalid("a dimension past 2^64", "[1, 1180591620717411303424]; every dimension", body=one(shape=[1, 2**70])),
    invalid("a product past 2^64", "takes 9903520300447984150353281023", body=one(shape=[2**31 - 1] * 3)),
    invalid("17 dimensions", "17 dimensions; at most 16", body=one(shape=[1] * 17)),
    invalid("a fraction as dimension", "Expected `int`, got `float`", body=one(shape=[1, 16.5])),
    invalid("too few elements", "has 3 elements; shape [1, 16] takes 16", body=one(data=[1, 2, 3])),
    invalid("too many elements", "has 17 elements; shape [1, 16] takes 16", body=one(data=[1] * 17)),
    invalid("inputs of different items", "the same number of items", body=one(shape=[2, 16], data=[1] * 32)),
    invalid("NaN in integers", "INPUT0", body=one(data=[float("nan")] * 16)),
    invalid("a boolean in integers", "Expected `int`, got `bool`", body=one(data=[True] * 16)),
    invalid("a text in integers", "Expected `int`, got `str`", body=one(data=["1"] * 16)),
    invalid("a number out of range", "outside the range of INT32", body=one(data=[2**31] * 16)),
    invalid("no data", "neither 'data' nor the parameter 'binary_data_size'", body=one(data=None)),
    invalid("a parameter that is an object", "parameters", body=body_of() | {"parameters": {"a": {}}}),
    invalid("a name of 100,000 characters", "unknown input 'XXXX", body=one(name="X" * 100_000)),
)  # fmt: skip

BINARY_BODIES = (
    binary("truncated binary data", "says 64 bytes of binary data; 10 are left", tail=bytes(10)),
    binary("bytes after the binary data", "3 bytes follow the binary data", tail=bytes(67)),
    binary("a JSON length past the body", "it must be from 0 to the body's", tail=bytes(64), length=99_999),
    binary("a JSON length that cuts the JSON", "not JSON", tail=bytes(64), length=30),
    binary("a JSON length into the data", "not JSON", tail=bytes(64), length=240),
    binary("a binary size that lies", "64 bytes of data; shape [1, 16] of INT64 takes 128", tail=bytes(64),
           datatype="INT64"),
    invalid("a JSON length of no number", "must be the JSON's length in bytes, not '-5'", headers={BINARY: "-5"}),
    invalid("two JSON lengths", "must be the JSON's length in bytes, not '5, 6'",
            headers=[(BINARY, "5"), (BINARY, "6")]),
    invalid("a negative binary size", "must be a number of bytes, not -1",
            body=one(parameters={"binary_data_size": -1})),
    invalid("both data and binary data", "has both 'data' and 'binary_data_size'",
            body=one(parameters={"binary_data_size": 0})),
    invalid("BYTES whose length lies", "BYTES element 0 says 4294967295 bytes, past the end",
            **bytes_tensor(b"\xff\xff\xff\xffab", 1)),
    invalid("BYTES of fewer elements", "6 bytes for 5 BYTES elements", **bytes_tensor(b"\x02\0\0\0ab", 5)),
    invalid("BYTES with bytes after them", "3 bytes after its 1 BYTES elements", **bytes_tensor(b"\0\0\0\0abc", 1)),
    invalid("compressed garbage", "not what its 'content-encoding' says", headers={"content-encoding": "gzip"}),
    invalid("an unknown encoding", "'br'; it must be 'gzip', 'deflate' or absent", headers={"content-encoding": "br"}),
    case("shared memory", 501, "unsupported", "shared memory is not served",
         body=one(parameters={"shared_memory_region": "r"})),
)  # fmt: skip

REQUIREMENTS = (
    slo("an SLO of NaN", LATENCY, "nan", POSITIVE_MS),
    slo("an SLO of infinity", LATENCY, "inf", POSITIVE_MS),
    slo("a negative SLO", LATENCY, "-5", POSITIVE_MS),
    slo("an SLO of 0", LATENCY, "0", POSITIVE_MS),
    slo("an SLO of years", LATENCY, "1e12", f"{POSITIVE_MS} and at most 86400000"),
    slo("an SLO that is a word", LATENCY, "soon", POSITIVE_MS),
    slo("an empty SLO", LATENCY, "", POSITIVE_MS),
    slo("an accuracy above 1", ACCURACY, "1.5", "a number from 0 (no floor) to 1"),
    slo("a negative cost", COST, "-1", "a number of USD per 1,000 queries, 0 or more"),
    slo("an unknown objective", "x-infaas-objective", "speed", "'cost', 'accuracy' or 'latency'"),
    slo("an unknown priority", "x-infaas-priority", "urgent", "'critical', 'standard' or 'sheddable'"),
    slo("a tenant that is no name", "x-infaas-tenant", "two words", "a letter or digit, then up to 127 letters"),
    slo("a tenant without a name", "x-infaas-tenant", "", "a letter or digit, then up to 127 letters"),
    slo("a fallback that is neither", "x-infaas-fallback", "maybe", "'allow' or 'deny'"),
    invalid("two SLOs", "must be a number of milliseconds", "not '5, 10'", headers=[(LATENCY, "5"), (LATENCY, "10")]),
    invalid("an unknown header", f"unknown header 'x-infaas-latency'; the nearest known one is '{LATENCY}'",
            headers={"x-infaas-latency": "5"}),
    invalid("many problems at once", "'x-infaas-slo-latency-ms'", "'x-infaas-max-cost'", "'x-infaas-foo'",
            headers={LATENCY: "x", COST: "y", "x-infaas-foo": "1"}),
    invalid("a twin out of range", "parameter 'slo_latency_ms' must be",
            body=body_of() | {"parameters": {"slo_latency_ms": -1}}),
    invalid("an unknown twin", "unknown parameter 'slo_latency'",
            body=body_of() | {"parameters": {"slo_latency": 1}}),
    invalid("a request id with spaces", "'x-request-id' must be 1 to 128 printable", headers={"x-request-id": "a b"}),
    case("stateful sequences", 501, "unsupported", "sequence_id", body=body_of() | {"parameters": {"sequence_id": 4}}),
    case("no variant can meet it", 422, "slo-unsatisfiable", headers={COST: "0"}),
)  # fmt: skip

NAMES = (
    case("an unknown model", 404, "not-found", "unknown model 'simpel'; did you mean 'simple'",
         path="/v2/models/simpel/infer"),
    case("an unknown version", 404, "not-found", "version 77", path="/v2/models/simple-sum/versions/77/infer"),
    invalid("a version that is none", "version 'new' must be a whole number",
            path="/v2/models/simple/versions/new/infer"),
    case("an unknown path", 404, "not-found", "no such path: '/v3'", path="/v3"),
    case("a name of 8,000 characters", 404, "not-found", "unknown model 'xxx", path=f"/v2/models/{'x' * 8000}/infer"),
    case("a path in a name", 404, "not-found", "no such path", path="/v2/models/../../etc/passwd/infer"),
    case("a method not allowed", 405, "invalid-argument", "does not take GET; it takes POST", method="GET"),
    case("a method of the control plane", 405, "invalid-argument", "does not take DELETE", method="DELETE",
         path="/v1/tasks"),
    case("no credential", 401, "unauthenticated", "no credential; send 'authorization: Bearer <token>'",
         has_credential=False),
    case("a wrong credential", 401, "unauthenticated", "wrong token", has_credential=False,
         headers={"authorization": "Bearer of-somebody-else"}),
    case("a credential of another kind", 401, "unauthenticated", "must be 'Bearer <token>'", has_credential=False,
         headers={"authorization": "Basic dTpw"}),
    case("two credentials", 401, "unauthenticated", "wrong token", headers={"authorization": "Bearer x"}),
)  # fmt: skip

GOOD = request_bytes("POST", INFER, json.dumps(body_of()).encode())
LINE = b"POST /v2/models/simple/infer HTTP/1.1\r\nhost: test\r\n"
CONNECTIONS = (
    wire("no HTTP", 400, "invalid-argument", "not a valid HTTP/1.1 request",
         data=b"\x16\x03\x01\x02\0\x01\0hello\r\n\r\n"),
    wire("HTTP/2 without asking", 400, "invalid-argument", "not a valid HTTP/1.1 request",
         data=b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    wire("a negative content length", 400, "invalid-argument", "Content-Length",
         data=LINE + b"content-length: -5\r\n\r\n"),
    wire("a content length of 30 digits", 400, "invalid-argument", "Content-Length",
         data=LINE + b"content-length: " + b"9" * 30 + b"\r\n\r\n"),
    wire("two content lengths", 400, "invalid-argument", "Content-Length",
         data=LINE + b"content-length: 5\r\ncontent-length: 6\r\n\r\nhello"),
    wire("a length and chunks", 400, "invalid-argument", "Content-Length",
         data=LINE + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    wire("a chunk whose size is none", 400, "invalid-argument", "chunk",
         data=LINE + b"transfer-encoding: chunked\r\n\r\nxyz\r\n"),
    wire("a header without a colon", 400, "invalid-argument", "header", data=LINE + b"nonsense\r\n\r\n"),
    wire("a folded header", 400, "invalid-argument", "header", data=LINE + b" folded: 1\r\n\r\n"),
    wire("NUL in a header", 400, "invalid-argument", "header", data=LINE + b"a: \0\r\n\r\n"),
    wire("a target that is no path", 400, "invalid-argument", "target", data=b"CONNECT host:443 HTTP/1.1\r\n\r\n"),
    wire("a header of 1 MB", 431, "too-large", "more than 65536 bytes",
         data=LINE + b"a: " + b"x" * 2**20 + b"\r\n\r\n"),
    wire("100,000 headers", 431, "too-large", "more than 65536 bytes", data=LINE + b"a: b\r\n" * 100_000 + b"\r\n"),
    wire("a header that never ends", 431, "too-large", "more than 65536 bytes", data=LINE + b"a: " + b"x" * 2**20),
)  # fmt: skip

ALL: tuple[Case, ...] = (*BODIES, *BINARY_BODIES, *REQUIREMENTS, *NAMES, *CONNECTIONS)
