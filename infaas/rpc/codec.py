"""Domain values as JSON and back, typed by their dataclasses; the form they have in the store and in journals."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from infaas.errors import InvalidError

T = TypeVar("T")

_UNFIT = (msgspec.MsgspecError, UnicodeError, RecursionError, OverflowError)
"""Besides what is not of the type: bytes that are no UTF-8, half a surrogate pair, endless nesting, huge numbers."""


def encode(value: object) -> bytes:
    return msgspec.json.encode(value)


def decode(data: bytes | str, kind: type[T]) -> T:
    """Raises `InvalidError` naming the field that does not fit `kind`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except _UNFIT as error:
        raise InvalidError(f"not a {kind.__name__}: {error}") from error


def to_plain(value: object) -> Any:
    """Dicts, lists, strings and numbers: what a JSON or YAML printer takes."""
    return msgspec.to_builtins(value)


def from_plain(value: object, kind: type[T]) -> T:
    """Raises `InvalidError` as `decode` does."""
    try:
        return msgspec.convert(value, type=kind)
    except _UNFIT as error:
        raise InvalidError(f"not a {kind.__name__}: {error}") from error
