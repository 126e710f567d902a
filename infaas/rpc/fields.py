"""Protobuf's wire format, as far as it is read and written here by hand: a message's outermost fields.

Tensors are the bulk of OIP's messages, and the generated classes copy them: into the message, and out of it again. What
is cut out of a message here is a view of its bytes; everything else is left to the generated classes, which know every
form. https://protobuf.dev/programming-guides/encoding/ is the format.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

from google.protobuf.message import DecodeError

MAX_FIELDS = 8_192
"""Of one message, at its outermost level."""
DELIMITED = 2
"""The wire type of strings, bytes and messages."""
_FIXED = {1: 8, 5: 4}
_SHORT = 0x80
"""A number below this is one byte."""
_MAX_LENGTH_BYTES = 5
"""How many bytes the generated classes take for a length."""


class Field(NamedTuple):
    """Where a field lies: from `begin` to `end`, its value from `value` on."""

    number: int
    begin: int
    value: int
    end: int


def outermost(data: bytes) -> Iterator[Field]:
    """The fields of a message in their order. Nothing inside them is looked at.

    Raises DecodeError, when it comes to it, for what is no message, for groups, and for more than `MAX_FIELDS`.
    """
    at, size = 0, len(data)
    for _ in range(MAX_FIELDS):
        if at >= size:
            return
        begin = at
        tag, at = _varint(data, at)
        kind, value = tag & 7, at
        if kind == DELIMITED:
            length, value = _varint(data, at)
            if value - at > _MAX_LENGTH_BYTES:
                raise DecodeError("a length in it is too long")
            at = value + length
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in _FIXED:
            at += _FIXED[kind]
        else:
            raise DecodeError(f"a field has the wire type {kind}")
        if at > size:
            raise DecodeError("it is cut short")
        yield Field(tag >> 3, begin, value, at)
    if at < size:
        raise DecodeError(f"it has more than {MAX_FIELDS} fields")


def tag_of(number: int) -> int:
    """The one byte that begins a delimited field whose number is below 16."""
    return number << 3 | DELIMITED


@lru_cache(maxsize=1024)
def delimited(number: int, size: int) -> bytes:
    """What comes before a value of so many bytes. `number` is below 16."""
    if size < _SHORT:
        return bytes((number << 3 | DELIMITED, size))
    return bytes((number << 3 | DELIMITED,)) + varint(size)


def varint(value: int) -> bytes:
    """Of a number that is not negative."""
    if value < _SHORT:
        return bytes((value,))
    found = bytearray()
    while value >= _SHORT:
        found.append(value & 0x7F | _SHORT)
        value >>= 7
    found.append(value)
    return bytes(found)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise DecodeError("it is cut short")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < _SHORT:
            return value, at
    raise DecodeError("a number in it is too long")
