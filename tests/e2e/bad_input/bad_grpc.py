"""Bad input over gRPC: each case with the status, the slug and the words that its caller must get."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from raw_callers import message_of

LATENCY = "x-infaas-slo-latency-ms"
Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True)
class Case:
    name: str
    message: Callable[[], Any]
    status: str
    code: str
    words: tuple[str, ...]
    metadata: tuple[tuple[str, str | bytes], ...] = ()
    method: str = "ModelInfer"
    has_credential: bool = True


def case(
    name: str,
    status: str,
    code: str,
    *words: str,
    change: Callable[[Any], Any] | None = None,
    data: bytes | None = None,
    metadata: Metadata = (),
    method: str = "ModelInfer",
    has_credential: bool = True,
    model: str = "simple",
) -> Case:
    """`change` makes a good message bad; what it returns, if anything, goes instead."""

    def message() -> Any:
        if data is not None:
            return data
        made = message_of(model=model)
        other = change(made) if change is not None else None
        return made if other is None else other

    return Case(name, message, status, code, words, tuple(metadata), method, has_credential)


def invalid(name: str, *words: str, **how: Any) -> Case:
    return case(name, "INVALID_ARGUMENT", "invalid-argument", *words, **how)


def shaped(*shape: int) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        message.inputs[0].shape[:] = shape

    return change


def first(**fields: Any) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        for name, value in fields.items():
            setattr(message.inputs[0], name, value)

    return change


def raw(data: bytes) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        message.raw_input_contents[0] = data

    return change


def typed(message: Any) -> None:
    del message.raw_input_contents[:]
    for one in message.inputs:
        one.contents.int_contents.extend(range(16))


def typed_wrong(message: Any) -> None:
    typed(message)
    message.inputs[0].contents.ClearField("int_contents")
    message.inputs[0].contents.fp32_contents.extend([1.0] * 16)


def typed_short(message: Any) -> None:
    typed(message)
    del message.inputs[0].contents.int_contents[3:]


def both(message: Any) -> None:
    message.inputs[0].contents.int_contents.append(1)


def fewer_raw(message: Any) -> None:
    del message.raw_input_contents[1:]


def as_bytes(data: bytes) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        message.inputs[0].datatype = "BYTES"
        message.raw_input_contents[0] = data

    return change


def with_parameter(name: str, field: str, value: Any) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        setattr(message.parameters[name], field, value)

    return change


def without_value(message: Any) -> None:
    message.parameters["empty"].SetInParent()


def in_shared_memory(message: Any) -> None:
    message.inputs[0].parameters["shared_memory_region"].string_param = "r"


def asked(name: str) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        message.outputs.add(name=name)

    return change


def of_version(version: str) -> Callable[[Any], None]:
    def change(message: Any) -> None:
        message.model_version = version

    return change


def cut(message: Any) -> bytes:
    return bytes(message.SerializeToString())[:-5]


ALL: tuple[Case, ...] = (
    invalid("bytes that are no message", "not a ModelInferRequest", data=b"\xff\xff\xff\xff garbage"),
    invalid("a message cut short", "not a ModelInferRequest", change=cut),
    invalid("no inputs", "input 'INPUT0' is missing", data=b"\x0a\x06simple"),
    invalid("an unknown input", "unknown input 'X'", change=first(name="X")),
    invalid("a duplicate input", "input 'INPUT1' is there twice", change=first(name="INPUT1")),
    invalid("an unknown output", "unknown output 'Z'", change=asked("Z")),
    invalid("an unknown datatype", "'INT31'; it must be one of BOOL", change=first(datatype="INT31")),
    invalid("another datatype", "takes 128", change=first(datatype="INT64")),
    invalid("a negative dimension", "every dimension must be from 0", change=shaped(1, -16)),
    invalid("a dimension of 2^62", "every dimension must be from 0", change=shaped(1, 2**62)),
    invalid("a product past 2^64", "takes 39614081", change=shaped(2**31 - 1, 2**31 - 1, 2**31 - 1)),
    invalid("17 dimensions", "17 dimensions; at most 16", change=shaped(*[1] * 17)),
    invalid("truncated raw contents", "has 10 bytes of data; shape [1, 16] of INT32 takes 64", change=raw(bytes(10))),
    invalid("fewer raw contents than inputs", "1 raw_input_contents for 2 inputs", change=fewer_raw),
    invalid("both raw and typed", "both contents and raw_input_contents", change=both),
    invalid("typed contents of another type", "its contents go in int_contents, not fp32_contents", change=typed_wrong),
    invalid("too few typed contents", "has 3 int_contents; shape [1, 16] takes 16", change=typed_short),
    invalid("BYTES whose length lies", "says 4294967295 bytes", change=as_bytes(b"\xff" * 4 + bytes(60))),
    invalid("a parameter without a value", "parameter 'empty' has no value", change=without_value),
    case("shared memory", "UNIMPLEMENTED", "unsupported", "shared memory is not served", change=in_shared_memory),
    case("stateful sequences", "UNIMPLEMENTED", "unsupported", "sequence_id",
         change=with_parameter("sequence_id", "int64_param", 4)),
    case("a method that is not served", "UNIMPLEMENTED", "unsupported", "shared memory is not served", data=b"",
         method="SystemSharedMemoryStatus"),
    case("a method that nobody knows", "UNIMPLEMENTED", "", "", data=b"", method="Nothing"),
    invalid("an SLO of NaN", f"header '{LATENCY}' must be a number", metadata=[(LATENCY, "nan")]),
    invalid("a negative SLO", f"header '{LATENCY}' must be", "not '-1'", metadata=[(LATENCY, "-1")]),
    invalid("an SLO of years", "at most 86400000", metadata=[(LATENCY, "1e300")]),
    invalid("two SLOs", "not '5, 6'", metadata=[(LATENCY, "5"), (LATENCY, "6")]),
    invalid("an unknown key", "the nearest known one is 'x-infaas-slo-latency-ms'",
            metadata=[("x-infaas-latency", "5")]),
    invalid("an unknown binary key", "unknown header 'x-infaas-slo-latency-ms-bin'",
            metadata=[("x-infaas-slo-latency-ms-bin", b"\0\1")]),
    invalid("a twin of NaN", "parameter 'slo_latency_ms' must be",
            change=with_parameter("slo_latency_ms", "double_param", float("nan"))),
    invalid("a negative timeout", "parameter 'timeout' must be", change=with_parameter("timeout", "int64_param", -1)),
    invalid("a request id with spaces", "'x-request-id' must be", metadata=[("x-request-id", "a b")]),
    invalid("a name of 60,000 characters", "unknown input 'XXXX", change=first(name="X" * 60_000)),
    invalid("a name beyond ASCII", "unknown input", change=first(name="é" * 3000)),
    case("an unknown model", "NOT_FOUND", "not-found", "did you mean 'simple'", model="simpel"),
    case("a model's name of 100,000 characters", "NOT_FOUND", "not-found", "unknown model 'xxx", model="x" * 100_000),
    case("an unknown version", "NOT_FOUND", "not-found", "version 77", model="simple-sum", change=of_version("77")),
    invalid("a version that is none", "version 'new' must be a whole number", change=of_version("new")),
    case("no credential", "UNAUTHENTICATED", "unauthenticated", "no credential", has_credential=False),
    case("a wrong credential", "UNAUTHENTICATED", "unauthenticated", "wrong token", has_credential=False,
         metadata=[("authorization", "Bearer x")]),
    case("no variant can meet it", "FAILED_PRECONDITION", "slo-unsatisfiable", metadata=[("x-infaas-max-cost", "0")]),
    case("a message of 100 MB", "RESOURCE_EXHAUSTED", "", "larger than max", data=bytes(100 * 2**20)),
    case("metadata of 100 KB", "RESOURCE_EXHAUSTED", "", "", metadata=[("x-large", "x" * 100_000)]),
    invalid("garbage to a control call", "not a ModelReadyRequest", data=b"\xff\xff\xff", method="ModelReady"),
)  # fmt: skip
