"""Checks a data file (npz) before anything trusts it: what it declares first, then its bytes, a piece at a time.

An archive's own claims are checked against limits before a byte is unpacked, pickled objects are never loaded, and no
array is held in memory whole. Runs in the inspecting subprocess only.
"""

from __future__ import annotations

import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from infaas.domain.tensor import Datatype, TensorSpec
from infaas.metrics import load_metric, metric_names

LABEL = "label"
_MAX_MEMBERS = 256
_CHUNK_BYTES = 4 << 20
_FEW_ROWS = 30
_MAX_SAID = 300
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, NotImplementedError,
    UnicodeDecodeError, struct.error,
)  # fmt: skip
"""What damaged archives raise."""
_CLASS_METRICS = ("accuracy", "f1")
_DTYPES = {
    Datatype.BOOL: "bool", Datatype.INT8: "int8", Datatype.INT16: "int16", Datatype.INT32: "int32",
    Datatype.INT64: "int64", Datatype.UINT8: "uint8", Datatype.UINT16: "uint16", Datatype.UINT32: "uint32",
    Datatype.UINT64: "uint64", Datatype.FP16: "float16", Datatype.FP32: "float32", Datatype.FP64: "float64",
}  # fmt: skip


class BadDataError(Exception):
    """The file cannot be read at all; the text says why."""


@dataclass(frozen=True, slots=True)
class _Header:
    """What an array says of itself before its bytes."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool
    offset: int

    @property
    def text(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class DataReport:
    rows: int | None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    is_readable: bool = True


def check_data(
    path: Path, what: str, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], metric: str, max_bytes: int
) -> DataReport:
    """Check that `path` holds one array per input, and answers to score against when `what` is the evaluation data."""
    try:
        with zipfile.ZipFile(path) as archive:
            headers = _headers(archive, max_bytes)
            return _check(archive, headers, what, inputs, outputs, metric)
    except BadDataError as error:
        return DataReport(None, (f"{what} data: {error}",), is_readable=False)
    except _UNREADABLE as error:
        problem = f"{what} data: not a readable npz file (numpy.savez): {error}"
        return DataReport(None, (problem,), is_readable=False)


def sample_rows(path: Path, inputs: Sequence[TensorSpec], rows: int) -> dict[str, np.ndarray[Any, Any]]:
    """The first rows of every input of a file that was checked, repeated when there are too few."""
    sample = {}
    with np.load(path, allow_pickle=False) as data:
        for spec in inputs:
            head = data[spec.name][:rows]
            sample[spec.name] = np.resize(head, (rows, *head.shape[1:]))
    return sample


def _headers(archive: zipfile.ZipFile, max_bytes: int) -> dict[str, _Header]:
    members = archive.infolist()
    if len(members) > _MAX_MEMBERS:
        raise BadDataError(f"{len(members)} arrays in it; at most {_MAX_MEMBERS} are taken")
    total = sum(member.file_size for member in members)
    if total > max_bytes:
        raise BadDataError(f"it unpacks to {total:,} bytes; at most {max_bytes:,} are taken")
    headers = {}
    for member in members:
        if len(member.filename) > _MAX_SAID:
            raise BadDataError(f"an array in it has a name of {len(member.filename):,} characters")
        if not member.filename.endswith(".npy") or member.filename.startswith("/") or ".." in member.filename:
            raise BadDataError(f"{member.filename!r} in it is no array; make it with numpy.savez")
        if member.flag_bits & 0x1:
            raise BadDataError(f"{member.filename!r} in it is encrypted")
        name = member.filename.removesuffix(".npy")
        if name in headers:
            raise BadDataError(f"it holds the array {name!r} twice")
        headers[name] = _header(archive, member, name)
    return headers


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> _Header:
    with archive.open(member) as file:
        try:
            version = npy.read_magic(file)
            if version == (1, 0):
                shape, is_fortran, dtype = npy.read_array_header_1_0(file)
            elif version == (2, 0):
                shape, is_fortran, dtype = npy.read_array_header_2_0(file)
            else:
                raise BadDataError(f"array {name!r} has the unknown npy version {version}")
        except (ValueError, SyntaxError, tokenize.TokenError, TypeError, KeyError, OverflowError) as error:
            said = " ".join(str(error).split())[:_MAX_SAID]
            raise BadDataError(f"array {name!r} is not in npy format: {said}") from error
        offset = file.tell()
    if dtype.hasobject:
        raise BadDataError(
            f"array {name!r} holds pickled Python objects, which are refused; "
            "save it with a plain dtype (array.astype('float32'), or a string dtype for text)"
        )
    if any(size < 0 for size in shape):
        raise BadDataError(f"array {name!r} declares the shape {list(shape)}")
    count = 1
    for size in shape:
        count *= int(size)
    if offset + count * dtype.itemsize != member.file_size:
        raise BadDataError(f"array {name!r} declares {dtype} {list(shape)}, which is not what its bytes hold")
    return _Header(dtype, tuple(int(size) for size in shape), bool(is_fortran), offset)


def _check(
    archive: zipfile.ZipFile,
    headers: Mapping[str, _Header],
    what: str,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    metric: str,
) -> DataReport:
    problems: list[str] = []
    warnings: list[str] = []
    used: dict[str, _Header] = {}
    for spec in inputs:
        _take(spec, "input", headers, used, problems)
    is_scored = what == "evaluation"
    answers = [spec for spec in outputs if spec.name in headers and spec.name not in used and spec.name != LABEL]
    if LABEL in headers and LABEL not in used:
        used[LABEL] = headers[LABEL]
        problems += _label_problems(headers[LABEL], metric)
    for spec in answers:
        _take(spec, "output", headers, used, problems)
    if is_scored and LABEL not in used and not answers:
        names = ", ".join(repr(spec.name) for spec in outputs)
        problems.append(f"answers are missing: give an array 'label', or the outputs' names ({names})")
    unused = sorted(set(headers) - set(used))
    if unused:
        warnings.append(f"arrays that nothing asks for are ignored: {', '.join(map(repr, unused))}")
    rows = _rows(used, problems)
    if rows is not None and not problems:
        for name, header in used.items():
            problems += _value_problems(archive, name, header)
        if is_scored and not problems:
            problems += _metric_problems(archive, used, outputs, metric)
        if is_scored and rows < _FEW_ROWS:
            warnings.append(f"only {rows} rows: the accuracy's interval will be wide")
    return DataReport(rows, tuple(f"{what} data: {p}" for p in problems), tuple(f"{what} data: {w}" for w in warnings))


def _take(
    spec: TensorSpec, what: str, headers: Mapping[str, _Header], used: dict[str, _Header], problems: list[str]
) -> None:
    header = headers.get(spec.name)
    wanted = (
        f"{_DTYPES.get(spec.datatype, 'str')} [rows, {', '.join('any' if d == -1 else str(d) for d in spec.shape[1:])}]"
    )
    if header is None:
        problems.append(f"the array of {what} {spec.name!r} ({wanted}) is missing; it holds {_names(headers)}")
        return
    used[spec.name] = header
    is_text = spec.datatype is Datatype.BYTES
    if is_text and header.dtype.kind not in "US":
        problems.append(f"array {spec.name!r} is {header.text}; it must be text (a str or bytes dtype)")
    elif not is_text and header.dtype != np.dtype(_DTYPES[spec.datatype]):
        name = _DTYPES[spec.datatype]
        problems.append(f"array {spec.name!r} is {header.text}; it must be {wanted}: save array.astype('{name}')")
    if not spec.admits(header.shape):
        problems.append(f"array {spec.name!r} has the shape {list(header.shape)}; it must be {wanted}")


def _label_problems(header: _Header, metric: str) -> list[str]:
    if header.dtype.kind not in "biufUS":
        return [f"array 'label' is {header.text}; it must hold numbers or text"]
    if not header.shape:
        return ["array 'label' is a single value; it must hold one per row"]
    is_column = len(header.shape) == 1 or (len(header.shape) == 2 and header.shape[1] == 1)
    if metric in _CLASS_METRICS and not is_column:
        return [f"array 'label' has the shape {list(header.shape)}; {metric} needs one class index per row: [rows]"]
    return []


def _rows(used: Mapping[str, _Header], problems: list[str]) -> int | None:
    counts = {name: header.shape[0] for name, header in used.items() if header.shape}
    if len(set(counts.values())) > 1:
        problems.append("the arrays' rows differ: " + ", ".join(f"{name!r} has {n}" for name, n in counts.items()))
        return None
    rows = next(iter(counts.values()), None)
    if rows == 0:
        problems.append("it holds no rows")
        return None
    return rows


def _metric_problems(
    archive: zipfile.ZipFile, used: Mapping[str, _Header], outputs: Sequence[TensorSpec], metric: str
) -> list[str]:
    """What the metric itself has against the answers it would score with."""
    if metric not in metric_names():
        return []  # the registrar says so in its own words
    names = {LABEL, *(spec.name for spec in outputs)} & set(used)
    answers = {}
    for name in names:
        with archive.open(name + ".npy") as file:
            answers[name] = npy.read_array(file, allow_pickle=False)
    return list(load_metric(metric).check(answers, outputs))


def _value_problems(archive: zipfile.ZipFile, name: str, header: _Header) -> list[str]:
    """Read every byte once (its checksum is verified on the way) and look for values that cannot be meant."""
    bad = 0
    with archive.open(name + ".npy") as file:
        _skip(file, header.offset)
        itemsize = max(1, header.dtype.itemsize)
        while piece := file.read(_CHUNK_BYTES // itemsize * itemsize):
            if header.dtype.itemsize == 0:
                continue
            values = np.frombuffer(piece, header.dtype)
            if header.dtype.kind in "fc":
                bad += int(values.size - np.count_nonzero(np.isfinite(values)))
    problems = []
    if bad:
        problems.append(f"array {name!r} holds {bad:,} values that are not finite (NaN or infinite)")
    return problems


def _skip(file: IO[bytes], count: int) -> None:
    while count > 0:
        count -= len(file.read(min(count, _CHUNK_BYTES))) or count


def _names(headers: Mapping[str, _Header]) -> str:
    return ", ".join(repr(name) for name in sorted(headers)) or "no arrays"
