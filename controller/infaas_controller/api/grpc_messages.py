"""Bytes to messages without a way around our errors: what is no message reaches its handler as one that says so.

gRPC itself would answer INTERNAL, which says that the fault is ours, and log a traceback for every such call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from infaas.errors import InvalidError


@dataclass(frozen=True, slots=True)
class Malformed:
    """In the place of a request that could not be read."""

    kind: str
    reason: str


def reader(kind: Any) -> Callable[[bytes], Any]:
    """The request deserializer of a method whose requests are of this kind."""

    def read(data: bytes) -> Any:
        try:
            return kind.FromString(data)
        except DecodeError as error:
            return Malformed(kind.DESCRIPTOR.name, str(error))

    return read


def checked(request: Any) -> Any:
    """The request, if it is one. Raises InvalidError for bytes that were none."""
    if isinstance(request, Malformed):
        raise InvalidError(f"the message is not a {request.kind}: {request.reason}")
    return request
