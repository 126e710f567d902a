"""Reads a registration's multipart body straight onto the disk, within a bound and without holding a file in memory."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from infaas.errors import InvalidError, TooLargeError, UnavailableError

FILES = ("file", "eval", "calibration")
FIELDS = ("task", "name", "metric", "map", "label", "accuracy", "isolation")
_MAX_FIELD_BYTES = 16 * 1024
_MAX_PARTS = 256


@dataclass(frozen=True, slots=True)
class Form:
    """`files`: field to path on disk and the name the caller gave it; `fields`: field to its values in order."""

    files: Mapping[str, tuple[Path, str]]
    fields: Mapping[str, tuple[str, ...]]

    def one(self, name: str) -> str | None:
        """Raises InvalidError when a field was given twice."""
        values = self.fields.get(name, ())
        if len(values) > 1:
            raise InvalidError(f"field {name!r} was given {len(values)} times; give it once")
        return values[0] if values else None


@contextlib.asynccontextmanager
async def received_form(
    request: Request, folder: Path, max_bytes: int, *, files: Sequence[str] = FILES, fields: Sequence[str] = FIELDS
) -> AsyncIterator[Form]:
    """The form of these parts, its files kept until the block ends.

    Raises InvalidError for a malformed or unknown part, TooLargeError as soon as the bound is passed, UnavailableError
    when the disk takes no more.
    """
    boundary = _boundary(request)
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > max_bytes:
        raise _too_large(max_bytes)
    workspace = await asyncio.to_thread(_workspace, folder)
    try:
        parts = _Parts(Path(workspace.name), tuple(files), tuple(fields))
        yield await _receive(request, boundary, parts, max_bytes)
    finally:
        await asyncio.to_thread(workspace.cleanup)


def _workspace(folder: Path) -> tempfile.TemporaryDirectory[str]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(prefix="upload-", dir=folder)
    except OSError as error:
        raise UnavailableError(f"no working folder can be made in {folder}: {error}") from error


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidError("a registration is sent as multipart/form-data with a boundary")
    return options[b"boundary"]


async def _receive(request: Request, boundary: bytes, parts: _Parts, max_bytes: int) -> Form:
    parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            await asyncio.to_thread(parser.write, chunk)
        await asyncio.to_thread(parser.finalize)
    except FormParserError as error:
        raise InvalidError(f"the multipart body is malformed: {error}") from error
    except ClientDisconnect as error:
        raise InvalidError("the caller left before its upload was complete") from error
    except OSError as error:
        raise UnavailableError(f"the upload cannot be kept: {error.strerror or error}") from error
    finally:
        parts.close()
    if not parts.is_complete:
        raise InvalidError("the multipart body ends before its closing boundary")
    return Form(parts.files, {name: tuple(values) for name, values in parts.fields.items()})


def _too_large(max_bytes: int) -> TooLargeError:
    return TooLargeError(f"the upload is larger than {max_bytes:,} bytes (controller.max_upload_bytes)")


@dataclass(slots=True)
class _Parts:
    """What the parser has met so far; its callbacks run in the thread that feeds it."""

    folder: Path
    known_files: tuple[str, ...]
    known_fields: tuple[str, ...]
    files: dict[str, tuple[Path, str]] = field(default_factory=dict)
    fields: dict[str, list[str]] = field(default_factory=dict)
    is_complete: bool = False
    _headers: dict[bytes, bytes] = field(default_factory=dict)
    _header_name: bytes = b""
    _header_value: bytes = b""
    _name: str = ""
    _text: bytearray = field(default_factory=bytearray)
    _file: BinaryIO | None = None
    _count: int = 0

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._on_header_name,
            "on_header_value": self._on_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._open,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _begin(self) -> None:
        self._count += 1
        if self._count > _MAX_PARTS:
            raise InvalidError(f"the form has more than {_MAX_PARTS} parts")
        self._headers = {}

    def _on_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        if len(self._header_name) > _MAX_FIELD_BYTES:
            raise InvalidError("the name of a part's header is too long")

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        if len(self._header_value) > _MAX_FIELD_BYTES:
            raise InvalidError("a part's header is too long")

    def _end_header(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _open(self) -> None:
        disposition, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if disposition != b"form-data" or not name:
            raise InvalidError("a part of the form has no name")
        self._name = name
        self._text = bytearray()
        if name in self.known_files:
            if name in self.files:
                raise InvalidError(f"file {name!r} was given twice")
            path = self.folder / name  # never the caller's own name
            self.files[name] = (path, options.get(b"filename", b"").decode("utf-8", "replace"))
            self._file = path.open("wb")
        elif name not in self.known_fields:
            known = ", ".join((*self.known_files, *self.known_fields))
            raise InvalidError(f"unknown field {name!r}; known are {known}")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._file.write(memoryview(data)[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > _MAX_FIELD_BYTES:
            raise InvalidError(f"field {self._name!r} is longer than {_MAX_FIELD_BYTES:,} bytes")

    def _end(self) -> None:
        if self._file is not None:
            self.close()
            return
        try:
            text = self._text.decode("utf-8")
        except UnicodeDecodeError:
            raise InvalidError(f"field {self._name!r} is not UTF-8") from None
        self.fields.setdefault(self._name, []).append(text)

    def _complete(self) -> None:
        self.is_complete = True
