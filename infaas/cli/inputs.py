"""What a user hands to `infaas infer`, as arrays that fit the model: npz, npy and JSON files, or `--input name=...`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infaas.client_tensors import Array, to_dtype
from infaas.domain.tensor import Datatype
from infaas.errors import InvalidError


@dataclass(frozen=True, slots=True)
class Data:
    """One array per input, all with the same number of rows. `is_table`: rows of a file rather than one query."""

    arrays: dict[str, Array]
    is_table: bool

    @property
    def rows(self) -> int:
        return min(len(array) for array in self.arrays.values())

    def query(self, number: int, batch: int) -> dict[str, Array]:
        """The `number`th query of `batch` rows, starting again from the first row after the last."""
        chosen = (np.arange(batch) + number * batch) % self.rows
        return {name: array[chosen] for name, array in self.arrays.items()}


def read(file: Path | None, texts: Sequence[str], specs: Sequence[Mapping[str, Any]]) -> Data:
    """`specs` are OIP's inputs of the handle. Raises InvalidError naming what is missing or does not fit."""
    given: dict[str, Array] = {}
    is_table = False
    if file is not None:
        is_table = file.suffix in (".npz", ".npy")
        given |= _read_file(file, [str(spec["name"]) for spec in specs])
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise InvalidError(f"--input {text!r} must be NAME=JSON or NAME=FILE.npy")
        given[name] = _load(Path(value)) if value.endswith(".npy") else _array(json_value(value, f"--input {name}"))
    missing = [str(spec["name"]) for spec in specs if spec["name"] not in given]
    if missing:
        known = ", ".join(f"{spec['name']} ({spec['datatype']} {spec['shape']})" for spec in specs)
        raise InvalidError(f"no value for input {', '.join(missing)}; the inputs are {known}")
    return Data({str(spec["name"]): _fit(given[spec["name"]], spec) for spec in specs}, is_table)


def json_value(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InvalidError(f"{where}: {text[:60]!r} is not JSON: {error}") from error


def _read_file(file: Path, names: Sequence[str]) -> dict[str, Array]:
    if file.suffix == ".npz":
        try:
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in names if name in arrays}
        except (OSError, ValueError) as error:
            raise InvalidError(f"{str(file)!r} cannot be read as npz: {error}") from error
    if file.suffix == ".npy":
        return {names[0]: _load(file)}
    if file.suffix == ".json":
        try:
            text = file.read_text()
        except OSError as error:
            raise InvalidError(f"{str(file)!r} cannot be read: {error.strerror}") from error
        return _from_json(json_value(text, str(file)), names)
    raise InvalidError(f"{str(file)!r}: inputs are .npz, .npy or .json files")


def _from_json(value: Any, names: Sequence[str]) -> dict[str, Array]:
    """An OIP request, a mapping of names to nested lists, or the only input's list itself."""
    if isinstance(value, list):
        return {names[0]: _array(value)}
    if not isinstance(value, dict):
        raise InvalidError("a JSON input must be a list, a mapping of input names, or an inference request")
    tensors = value.get("inputs")
    if isinstance(tensors, list):
        try:
            return {str(one["name"]): _array(one["data"]).reshape(one["shape"]) for one in tensors}
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidError(f"the file's `inputs` are not tensors with name, shape and data: {error}") from error
    return {str(name): _array(rows) for name, rows in value.items()}


def _load(file: Path) -> Array:
    try:
        loaded: Array = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InvalidError(f"{str(file)!r} cannot be read as npy: {error}") from error
    return loaded


def _array(value: Any) -> Array:
    try:
        array = np.array(value)
    except ValueError as error:
        raise InvalidError(f"not a regular array: {error}") from error
    return array


def _fit(array: Array, spec: Mapping[str, Any]) -> Array:
    """In the input's datatype, with a batch dimension when it was left out."""
    shape = spec["shape"]
    if array.ndim == len(shape) - 1:
        array = array[np.newaxis]
    if array.ndim != len(shape):
        raise InvalidError(f"input {spec['name']!r} has shape {list(array.shape)}; {shape} is wanted")
    return to_dtype(array, Datatype(spec["datatype"]))
