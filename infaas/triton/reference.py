"""The artifact of an attached model: not the model, but where it is served and how its tensors become the task's.

A reference is a small JSON file in the repository, so that everything that holds for artifacts holds for it: it has a
digest, a version belongs to exactly one, the catalogue and the worker protocol need to know nothing new. It names one
version of one model on one server and what was found there, because that is what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infaas.domain.tensor import Datatype, TensorSpec
from infaas.domain.variant import Hardware
from infaas.errors import InvalidError
from infaas.rpc.codec import decode, encode

FORMAT = "infaas.triton/1"
MAX_BYTES = 1 << 20
_BEGIN = b'{"format":"infaas.triton/'
"""No ONNX file begins so: a brace is no tag that protobuf could start a message with here."""
MIN_CLIENT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorMap:
    """One tensor on its way between the task and the server."""

    ours: str
    theirs: str
    task_type: Datatype
    model_type: Datatype
    is_argmax: bool = False
    """The output is the index of the greatest score in each row of theirs."""


@dataclass(frozen=True, slots=True)
class Reference:
    """How to run an attached model. Encoded with its fields in this order: the first one marks the file."""

    format: str
    url: str
    model: str
    version: str
    inputs: tuple[TensorMap, ...]
    outputs: tuple[TensorMap, ...]
    is_batched: bool
    """Whether the first dimension of the server's tensors counts items; else one item is one request without it."""
    fixed_batch: int | None
    max_batch_size: int
    """The most items in one request; as the server says, else as the generator's setting does."""
    instances: int
    """How many requests the server runs at the same time: it is given so many."""
    hardware: Hardware
    platform: str
    price_usd_per_hour: float | None = None
    """Of one of the server's instances; None: as a core of the pool."""


def write_reference(reference: Reference, path: Path) -> None:
    path.write_bytes(encode(reference))


def is_reference(path: Path) -> bool:
    """Whether an artifact is a reference, and not a graph."""
    with path.open("rb") as file:
        return file.read(len(_BEGIN)) == _BEGIN


def read_reference(path: Path) -> Reference:
    """Raises InvalidError for anything else."""
    if not is_reference(path):
        raise InvalidError("it is no reference to a model on a Triton server")
    if path.stat().st_size > MAX_BYTES:
        raise InvalidError(f"a reference of more than {MAX_BYTES:,} bytes")
    found = decode(path.read_bytes(), Reference)
    if found.format != FORMAT:
        raise InvalidError(f"its form is {found.format!r}; this version reads {FORMAT!r}")
    return found


def client_bytes(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], reference: Reference) -> int:
    """What an instance takes of the worker's memory: the model is elsewhere, its largest batches pass through here
    twice, as queries' tensors and as one message."""
    items = sum(_item_bytes(spec) for spec in (*inputs, *outputs))
    return max(MIN_CLIENT_BYTES, 2 * items * reference.max_batch_size * reference.instances)


def _item_bytes(spec: TensorSpec) -> int:
    size = spec.datatype.itemsize or 64
    for dimension in spec.shape[1:]:
        size *= max(1, dimension)
    return size
