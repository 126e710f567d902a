"""Domain values as JSON and back, typed by their dataclasses; the form they have in the store and in journals."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from infaas.errors import InvalidError

T = TypeVar("T")


def encode(value: object) -> bytes:
    return msgspec.json.encode(value)


def decode(data: bytes | str, kind: type[T]) -> T:
    """Raises `InvalidError` naming the field that does not fit `kind`."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidError(f"not a {kind.__name__}: {error}") from error


def to_plain(value: object) -> Any:
    """Dicts, lists, strings and numbers: what a JSON or YAML printer takes."""
    return msgspec.to_builtins(value)


def from_plain(value: object, kind: type[T]) -> T:
    try:
        return msgspec.convert(value, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidError(f"not a {kind.__name__}: {error}") from error
