"""The queries of a run as bytes that are ready to send, and the scoring of their answers.

Inputs repeat after `slots` queries, so that what is prepared stays small; which rows a query holds follows from its
number alone, and so does what its answer must be held against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from infaas.bench import grpc, rest
from infaas.bench.kept import KeptAnswers
from infaas.bench.mixes import RequirementSet
from infaas.bench.protocol import Protocol
from infaas.bench.report import Score
from infaas.client_tensors import Array
from infaas.domain.tensor import Datatype, TensorSpec
from infaas.domain.variant import Accuracy
from infaas.errors import InvalidError
from infaas.metrics import Metric

PREPARED_BYTES = 64 * 2**20
MOST_SLOTS = 2_048
RANDOM_ROWS = 256


class Rows:
    """The rows that queries are made of, `batch` each, in order and then again from the first."""

    def __init__(self, inputs: Mapping[str, Array], batch: int, expected: Mapping[str, Array]) -> None:
        """`expected`: labels, or the outputs themselves, one per row; empty where nothing is known of the answers.
        Raises InvalidError where there is no row."""
        self.inputs = inputs
        self.batch = batch
        self.expected = expected
        self.count = min((len(array) for array in inputs.values()), default=0)
        if self.count == 0:
            raise InvalidError("there are no rows to make queries of")
        size = sum(array.nbytes for array in inputs.values()) / self.count * batch
        whole = -(-self.count // batch)
        self.slots = max(1, min(whole, MOST_SLOTS, int(PREPARED_BYTES / max(size, 1.0))))

    def of(self, number: int) -> Array:
        return (np.arange(self.batch) + number % self.slots * self.batch) % self.count

    def query(self, number: int) -> dict[str, Array]:
        rows = self.of(number)
        return {name: array[rows] for name, array in self.inputs.items()}


def random_inputs(specs: Sequence[TensorSpec], batch: int, seed: int) -> dict[str, Array]:
    """Rows that fit the inputs' datatypes and shapes. Raises InvalidError for a shape that only data can settle."""
    draw = np.random.default_rng(seed)
    return {spec.name: _random(spec, max(batch, RANDOM_ROWS), draw) for spec in specs}


class Prepared:
    """Bytes to send by slot and requirement set, made at the first use."""

    def __init__(
        self,
        handle: str,
        rows: Rows,
        sets: Sequence[RequirementSet],
        protocol: Protocol,
        token: str | None,
        url: str,
    ) -> None:
        self._handle = handle
        self._rows = rows
        self._protocol = protocol
        self._url = url
        secret = {"authorization": f"Bearer {token}"} if token else {}
        self._headers = [one.requirements.headers() | secret for one in sets]
        self.metadata = [tuple(headers.items()) for headers in self._headers]
        self._made: dict[tuple[int, int], bytes] = {}

    def prepare(self) -> None:
        """All of them, before the clock runs."""
        for slot in range(self._rows.slots):
            for mix in range(len(self._headers)):
                self.query(slot, mix)

    def query(self, number: int, mix: int) -> bytes:
        key = (number % self._rows.slots, 0 if self._protocol is Protocol.GRPC else mix)
        found = self._made.get(key)
        if found is None:
            found = self._made[key] = self._make(*key)
        return found

    def _make(self, slot: int, mix: int) -> bytes:
        inputs = self._rows.query(slot)
        if self._protocol is Protocol.GRPC:
            return grpc.query_bytes(self._handle, inputs)
        is_binary = self._protocol is Protocol.REST_BINARY
        return rest.query_bytes(self._handle, inputs, self._headers[mix], is_binary=is_binary, url=self._url)


def scorer(rows: Rows, kept: KeptAnswers, protocol: Protocol, metric: Metric, outputs: Sequence[TensorSpec]) -> Score:
    """Scores every distinct row that was answered once: the metric's interval is that of so many independent rows."""
    read: rest.OutputsOf = grpc.outputs_of if protocol is Protocol.GRPC else rest.outputs_of

    def score(mix: int | None) -> Accuracy | None:
        replies = kept.of(mix)
        if not replies or not rows.expected:
            return None
        answers = [read(reply) for reply in replies.values()]
        # A query at the end of the rows goes on with the first ones, and a large one may hold a row several times.
        at, first = np.unique(np.concatenate([rows.of(slot) for slot in replies]), return_index=True)
        found = {spec.name: np.concatenate([answer[spec.name] for answer in answers])[first] for spec in outputs}
        return metric.evaluate(found, {name: array[at] for name, array in rows.expected.items()})

    return score


def _random(spec: TensorSpec, rows: int, draw: np.random.Generator) -> Array:
    shape = (rows, *spec.shape[1:])
    if any(size < 0 for size in shape):
        raise InvalidError(
            f"input {spec.name!r} has shape {list(spec.shape)}: random data frees only the first dimension; give a file"
        )
    if spec.datatype is Datatype.BYTES:
        return draw.integers(0, 10**6, size=shape).astype(str).astype(object)
    if spec.datatype is Datatype.BOOL:
        return draw.random(shape) < 0.5
    if spec.datatype in (Datatype.FP16, Datatype.FP32, Datatype.FP64):
        kind = {Datatype.FP16: np.float16, Datatype.FP32: np.float32, Datatype.FP64: np.float64}[spec.datatype]
        return draw.random(shape).astype(kind)
    name = spec.datatype.value.lower()
    return draw.integers(0, 100, size=shape).astype(np.dtype(name))
